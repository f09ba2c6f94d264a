"""A pod's way up and down, step by step, with the time each step takes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from attrs import frozen
from rich.console import Console as Terminal

from virtlet.cli.client import Client
from virtlet.cli.ending import CommandFailed
from virtlet.cli.kubelet import GRACE_PERIOD
from virtlet.cli.manifest import PodManifest
from virtlet.cri import api_pb2 as cri

DEFAULT_GRACE = 30


@frozen
class RunningPod:
    """What came up."""

    pod_id: str
    container_id: str
    address: str
    log_path: str


class Reporter(Protocol):
    """Shows steps."""

    def step(self, title: str) -> AbstractContextManager[None]:
        """Show a step while it lasts, and its duration when it is done."""

    def note(self, text: str) -> None:
        """Show a line."""


class TerminalReporter:
    """Shows steps: a spinner on a terminal, plain lines elsewhere."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal(highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, *, spinner: bool = True) -> Iterator[None]:
        """Show a step while it lasts, and its duration when it is done."""
        started = time.monotonic()
        try:
            if spinner and self._terminal.is_terminal:
                with self._terminal.status(title):
                    yield
            else:
                yield
        except BaseException:
            self._terminal.print(f"[red]✗[/red] {title}", highlight=False)
            raise
        took = time.monotonic() - started
        self._terminal.print(f"[green]✓[/green] {title:<58} {took:7.2f} s", highlight=False)

    def note(self, text: str) -> None:
        """Show a line."""
        self._terminal.print(text, markup=False, highlight=False)


def bring_up(client: Client, manifest: PodManifest, report: Reporter) -> RunningPod:
    """Run a pod as a kubelet does: sandbox, image, container, start."""
    name = f"{manifest.pod.metadata.namespace}/{manifest.pod.metadata.name}"
    image = manifest.container.image.image
    with report.step(f"RunPodSandbox    {name}"):
        pod_id = client.run_pod(manifest.pod, manifest.handler)
    with report.step(f"PullImage        {image}"):
        image_id = ensure_image(client, manifest)
    with report.step(f"CreateContainer  {manifest.container.metadata.name}"):
        container_id = client.create(
            pod_id, manifest.attempt(_next_attempt(client, pod_id), image_id), manifest.pod
        )
    with report.step("StartContainer"):
        client.start(container_id)
    return _running(client, pod_id, container_id)


def restore_up(
    client: Client,
    directory: Path,
    manifest: PodManifest,
    report: Reporter,
    options: Mapping[str, str],
) -> RunningPod:
    """Have a pod go on from the checkpoint in a directory, as a kubelet does.

    Args:
        client: of the runtime.
        directory: of the node.
        manifest: the pod.
        report: told of the steps.
        options: of RestorePod.

    Raises:
        CommandFailed: its image is not in the store.
    """
    name = f"{manifest.pod.metadata.namespace}/{manifest.pod.metadata.name}"
    image_id = client.image_id(manifest.image())
    if not image_id:
        raise CommandFailed(
            f"image {manifest.container.image.image} is not in the store: pull it (`virtlet pull`)"
        )
    with report.step(f"RestorePod       {name}"):
        pod_id, container_id = client.restore_pod(
            str(directory),
            manifest.pod,
            manifest.attempt(0, image_id),
            manifest.handler,
            options,
        )
    with report.step("StartContainer"):
        client.start(container_id)
    return _running(client, pod_id, container_id)


def _running(client: Client, pod_id: str, container_id: str) -> RunningPod:
    address = client.pod_status(pod_id).network.ip
    return RunningPod(pod_id, container_id, address, client.status(container_id).log_path)


def grace_of(container: cri.Container) -> int:
    """Seconds that a VM's guest gets to power off, as its manifest says."""
    said = container.annotations.get(GRACE_PERIOD, "")
    return int(said) if said.isdecimal() else DEFAULT_GRACE


def take_down(client: Client, pod_id: str, grace: int | None, report: Reporter) -> None:
    """Stop and remove a pod as a kubelet does.

    Args:
        client: of the runtime.
        pod_id: the pod.
        grace: seconds that the guest gets to power off; None for what the manifest says.
        report: shows the steps.
    """
    for container in client.containers(pod_id):
        seconds = grace_of(container) if grace is None else grace
        with report.step(f"StopContainer    grace {seconds} s"):
            client.stop(container.id, seconds)
    with report.step("StopPodSandbox"):
        client.stop_pod(pod_id)
    for container in client.containers(pod_id):
        with report.step("RemoveContainer"):
            client.remove(container.id)
    with report.step("RemovePodSandbox"):
        client.remove_pod(pod_id)


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until something is true.

    Raises:
        TimeoutError: it was not within `timeout` seconds; the text says what.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.1)


def ensure_image(client: Client, manifest: PodManifest) -> str:
    """Have a pod's image in the store by its pull policy, as a kubelet has; returns its id.

    Raises:
        CommandFailed: it is not there, and the policy is to never pull it.
    """
    image = manifest.image()
    found = client.image_id(image)
    if manifest.pull_policy == "Always" or not (found or manifest.pull_policy == "Never"):
        return client.pull(image, manifest.pod)
    if not found:
        raise CommandFailed(
            f"image {image.image} is not in the store, and the manifest's imagePullPolicy is "
            "Never: pull it (`virtlet pull`), or use IfNotPresent"
        )
    return found


def _next_attempt(client: Client, pod_id: str) -> int:
    """The number after those of the attempts that have ended, as a kubelet counts restarts."""
    return max(
        (
            container.metadata.attempt + 1
            for container in client.containers(pod_id)
            if container.state == cri.CONTAINER_EXITED
        ),
        default=0,
    )
