"""The client commands: run, ps, logs, stop, rm, images, pull."""

import sys
import time
from pathlib import Path

import click
from rich.console import Console as Terminal
from rich.table import Table

from virtlet.cli.client import CallFailed, Client, default_socket, follow_log
from virtlet.cli.manifest import read_manifest
from virtlet.cli.pull_progress import progress_bar
from virtlet.cli.steps import TerminalReporter, bring_up, take_down
from virtlet.cri import api_pb2 as cri

LOG_ROOT = "/var/log/pods"
DEFAULT_GRACE = 30

_socket = click.option(
    "--socket",
    default=default_socket,
    show_default="$VIRTLET_CRI_SOCKET_PATH or /run/virtlet.sock",
    help="The runtime's CRI socket.",
)


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--log-root",
    type=click.Path(path_type=Path),
    default=LOG_ROOT,
    show_default=True,
    help="Where the pods' log directories go.",
)
@_socket
def run(manifest: Path, log_root: Path, socket: str) -> None:
    """Bring up the VM pod of a Kubernetes manifest, as a kubelet would."""
    wanted = read_manifest(manifest, log_root.absolute())
    with Client(socket) as client:
        pod = bring_up(client, wanted, TerminalReporter())
    click.echo(f"pod {pod.pod_id[:12]} runs at {pod.address or 'no address'}")
    click.echo(f"console: virtlet logs -f {pod.pod_id[:12]}")


@click.command()
@_socket
def ps(socket: str) -> None:
    """List pods and their VMs."""
    with Client(socket) as client:
        containers = client.containers()
        table = Table(box=None, pad_edge=False)
        for title in ("POD", "NAMESPACE/NAME", "STATE", "VM", "ATTEMPT", "STATE", "IP", "AGE"):
            table.add_column(title, no_wrap=True)
        for pod in client.pods():
            ip = client.pod_status(pod.id).network.ip
            mine: list[cri.Container | None] = [c for c in containers if c.pod_sandbox_id == pod.id]
            for container in mine or [None]:
                table.add_row(*_row(pod, container, ip))
    Terminal(width=None if sys.stdout.isatty() else 200).print(table)


@click.command()
@click.argument("pod")
@click.option("-f", "--follow", is_flag=True, help="Go on until the VM ends.")
@_socket
def logs(pod: str, follow: bool, socket: str) -> None:
    """Show the console of a pod's VM (its newest attempt)."""
    with Client(socket) as client:
        container = _newest(client, _pod_id(client, pod))
        path = client.status(container.id).log_path
        if not path:
            raise click.ClickException("this pod asked for no log")

        def ended() -> bool:
            try:
                return client.status(container.id).state == cri.CONTAINER_EXITED
            except CallFailed:
                return True

        for payload in follow_log(Path(path), follow=follow, ended=ended):
            sys.stdout.buffer.write(payload)
            sys.stdout.buffer.flush()


@click.command()
@click.argument("pods", nargs=-1, required=True)
@click.option("--grace", default=DEFAULT_GRACE, show_default=True, help="Seconds for the guest.")
@_socket
def stop(pods: tuple[str, ...], grace: int, socket: str) -> None:
    """Stop pods: power the guest off, then take the network away."""
    with Client(socket) as client:
        report = TerminalReporter()
        for pod_id in [_pod_id(client, pod) for pod in pods]:
            for container in client.containers(pod_id):
                with report.step(f"StopContainer    {container.metadata.name}, grace {grace} s"):
                    client.stop(container.id, grace)
            with report.step(f"StopPodSandbox   {pod_id[:12]}"):
                client.stop_pod(pod_id)


@click.command()
@click.argument("pods", nargs=-1, required=True)
@click.option("--grace", default=DEFAULT_GRACE, show_default=True, help="Seconds for the guest.")
@_socket
def rm(pods: tuple[str, ...], grace: int, socket: str) -> None:
    """Stop and remove pods with all they left."""
    with Client(socket) as client:
        for pod_id in [_pod_id(client, pod) for pod in pods]:
            take_down(client, pod_id, grace, TerminalReporter())


@click.command()
@_socket
def images(socket: str) -> None:
    """List the images of the store."""
    table = Table(box=None, pad_edge=False)
    for title in ("IMAGE", "ID", "SIZE"):
        table.add_column(title, no_wrap=True)
    with Client(socket) as client:
        for image in client.call("ListImages", cri.ListImagesRequest()).images:
            names = ", ".join(image.repo_tags) or "<none>"
            table.add_row(names, image.id[7:19], f"{image.size / 1e6:.1f} MB")
    Terminal(width=None if sys.stdout.isatty() else 200).print(table)


@click.command()
@click.argument("image")
@click.option("--handler", default="", help="Pull with the plugins of this runtime handler.")
@_socket
def pull(image: str, handler: str, socket: str) -> None:
    """Pull an image into the store."""
    terminal = Terminal(highlight=False, soft_wrap=True)
    title = f"PullImage        {image}"
    report = TerminalReporter(terminal)
    with (
        Client(socket) as client,
        report.step(title, spinner=False),
        progress_bar(client, image, terminal),
    ):
        image_id = client.pull(image, handler=handler)
    click.echo(image_id)


def _pod_id(client: Client, text: str) -> str:
    """The pod whose id starts with a text, or whose name it is."""
    found = {
        pod.id
        for pod in client.pods()
        if pod.id.startswith(text)
        or text in (pod.metadata.name, f"{pod.metadata.namespace}/{pod.metadata.name}")
    }
    if len(found) == 1:
        return found.pop()
    problem = "no pod is" if not found else f"{len(found)} pods are"
    raise click.ClickException(f"{problem} called {text!r}: `virtlet ps` lists them")


def _newest(client: Client, pod_id: str) -> cri.Container:
    containers = client.containers(pod_id)
    if not containers:
        raise click.ClickException("the pod has no VM")
    return max(containers, key=lambda c: (c.created_at, c.metadata.attempt))


def _row(pod: cri.PodSandbox, container: cri.Container | None, ip: str) -> list[str]:
    state = cri.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_")
    age = f"{max(0, time.time_ns() - pod.created_at) // 1_000_000_000} s"
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if container is None:
        return [pod.id[:12], name, state, "", "", "", ip, age]
    vm_state = cri.ContainerState.Name(container.state).removeprefix("CONTAINER_")
    attempt = str(container.metadata.attempt)
    return [pod.id[:12], name, state, container.metadata.name, attempt, vm_state, ip, age]
