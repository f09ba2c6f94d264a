"""Which pod, VM or image a word on the command line means."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from virtlet.cli.client import Client, default_socket
from virtlet.cli.ending import CommandFailed
from virtlet.cri import api_pb2 as cri

COMPLETION_TIMEOUT = 2.0
"""Seconds that a Tab key waits for the manager."""

F = TypeVar("F", bound=Callable[..., Any])

socket_option = click.option(
    "--socket",
    default=default_socket,
    show_default="$VIRTLET_CRI_SOCKET_PATH or /run/virtlet.sock",
    help="The runtime's CRI socket, as a path or a unix:// address.",
)


def complete_pods(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of pods for the shell; none where the manager does not answer."""
    try:
        with Client(ctx.params.get("socket") or default_socket(), COMPLETION_TIMEOUT) as client:
            names = sorted({pod.metadata.name for pod in client.pods()})
    except CommandFailed:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


pod_argument = functools.partial(click.argument, shell_complete=complete_pods)


def pod_id(client: Client, text: str) -> str:
    """The pod whose id starts with a text, or whose name it is, also as NAMESPACE/NAME.

    Raises:
        click.ClickException: there is none, or more than one.
    """
    found = {
        pod.id
        for pod in client.pods()
        if pod.id.startswith(text)
        or text in (pod.metadata.name, f"{pod.metadata.namespace}/{pod.metadata.name}")
    }
    return _only(found, "pod", text, "virtlet ps")


def newest_vm(client: Client, pod: str) -> cri.Container:
    """The VM of a pod that was made last.

    Args:
        pod: its id.
        client: asked for the pod's VMs.

    Raises:
        click.ClickException: it has none.
    """
    containers = client.containers(pod)
    if not containers:
        raise click.ClickException("the pod has no VM")
    return max(containers, key=lambda c: (c.created_at, c.metadata.attempt))


def image_id(images: Sequence[cri.Image], text: str) -> str:
    """The image of a name, or whose id starts with a text.

    Raises:
        click.ClickException: there is none, or more than one.
    """
    found = {
        image.id
        for image in images
        if text in (*image.repo_tags, *image.repo_digests)
        or f"{text}:latest" in image.repo_tags
        or image.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
    }
    return _only(found, "image", text, "virtlet images")


def _only(found: set[str], kind: str, text: str, lister: str) -> str:
    if len(found) == 1:
        return found.pop()
    problem = f"no {kind} is" if not found else f"{len(found)} {kind}s are"
    raise click.ClickException(f"{problem} called {text!r}: `{lister}` lists them")
