"""The commands that change pods, or keep them: run, stop, rm, checkpoint, restore; hibernate."""

from pathlib import Path

import click

from virtlet.cli.attended import AttendedClient
from virtlet.cli.manifest import read_manifest
from virtlet.cli.steps import TerminalReporter, bring_up, grace_of, restore_up, take_down
from virtlet.cli.targets import newest_vm, pod_argument, pod_id, socket_option

LOG_ROOT = "/var/log/pods"
_grace = click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=None,
    show_default="terminationGracePeriodSeconds of the manifest",
    help="Seconds for the guest to power off.",
)


_log_root = click.option(
    "--log-root",
    type=click.Path(path_type=Path),
    default=LOG_ROOT,
    show_default=True,
    help="Where the pods' log directories go.",
)


_key_file = click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the node with the 32 bytes that the checkpoint is encrypted by.",
)


def _keyed(key_file: Path | None) -> dict[str, str]:
    return {} if key_file is None else {"keyFile": str(key_file.absolute())}


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@_log_root
@socket_option
def run(manifest: Path, log_root: Path, socket: str) -> None:
    """Bring up the VM pod of a Kubernetes manifest, as a kubelet would."""
    wanted = read_manifest(manifest, log_root.absolute())
    with AttendedClient(socket) as client:
        pod = bring_up(client, wanted, TerminalReporter())
    click.echo(f"pod {pod.pod_id[:12]} runs at {pod.address or 'no address'}")
    click.echo(f"console: virtlet logs -f {pod.pod_id[:12]}")


@click.command()
@pod_argument("pods", nargs=-1, required=True)
@_grace
@socket_option
def stop(pods: tuple[str, ...], grace: int | None, socket: str) -> None:
    """Stop pods: power the guest off, then take the network away."""
    with AttendedClient(socket) as client:
        report = TerminalReporter()
        for chosen in [pod_id(client, pod) for pod in pods]:
            for container in client.containers(chosen):
                seconds = grace_of(container) if grace is None else grace
                with report.step(f"StopContainer    {container.metadata.name}, grace {seconds} s"):
                    client.stop(container.id, seconds)
            with report.step(f"StopPodSandbox   {chosen[:12]}"):
                client.stop_pod(chosen)


@click.command()
@pod_argument("pods", nargs=-1, required=True)
@_grace
@socket_option
def rm(pods: tuple[str, ...], grace: int | None, socket: str) -> None:
    """Stop and remove pods with all they left."""
    with AttendedClient(socket) as client:
        for chosen in [pod_id(client, pod) for pod in pods]:
            take_down(client, chosen, grace, TerminalReporter())


@click.command()
@pod_argument("pod")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Seconds that it may take.",
)
@_key_file
@socket_option
def checkpoint(pod: str, file: Path, timeout: int, key_file: Path | None, socket: str) -> None:
    """Write a pod's running VM to a new FILE of the node, while it runs on.

    FILE may be an empty directory: then it holds the pod's checkpoint. Either holds the guest's
    memory and disk, with all secrets that are in them. Only root can read it.
    """
    path = file.absolute()
    if key_file is not None and not path.is_dir():
        raise click.UsageError("a checkpoint is encrypted in a directory: make an empty one")
    with AttendedClient(socket) as client:
        chosen = pod_id(client, pod)
        vm = newest_vm(client, chosen)
        if path.is_dir():
            client.checkpoint_pod(chosen, [vm.id], str(path), timeout, _keyed(key_file))
        else:
            client.checkpoint(vm.id, str(path), timeout)
    click.echo(f"checkpoint of {vm.metadata.name}: {path}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--identity",
    type=click.Choice(["same", "new"]),
    default="same",
    show_default=True,
    help="Whether the guest stays who it was, to be moved, or becomes another one, as a copy.",
)
@_key_file
@_log_root
@socket_option
def restore(
    directory: Path,
    manifest: Path,
    identity: str,
    key_file: Path | None,
    log_root: Path,
    socket: str,
) -> None:
    """Have the VM pod of a manifest go on from the checkpoint in a DIRECTORY of the node.

    The manifest is that of the pod of which the checkpoint is, which has to be gone unless the
    identity is new. The image has to be in the store.
    """
    options = {**_keyed(key_file), "identity": identity}
    wanted = read_manifest(manifest, log_root.absolute())
    with AttendedClient(socket) as client:
        pod = restore_up(client, directory.absolute(), wanted, TerminalReporter(), options)
    click.echo(f"pod {pod.pod_id[:12]} goes on at {pod.address or 'no address'}")
    click.echo(f"console: virtlet logs -f {pod.pod_id[:12]}")


@click.command()
@pod_argument("pod")
@socket_option
def hibernate(pod: str, socket: str) -> None:
    """Put the memory of a pod's running VM on disk, and give it back to the node.

    The pod keeps its address and disks, and a kubelet takes it for running. What the guest was to
    answer gets no answer until `virtlet resume`.
    """
    with AttendedClient(socket) as client:
        vm = newest_vm(client, pod_id(client, pod))
        client.hibernate(vm.id, on=True)
    click.echo(f"{vm.metadata.name} is hibernated: `virtlet resume {pod}` brings it back")


@click.command()
@pod_argument("pod")
@socket_option
def resume(pod: str, socket: str) -> None:
    """Have a pod's hibernated VM go on where it stood."""
    with AttendedClient(socket) as client:
        vm = newest_vm(client, pod_id(client, pod))
        client.hibernate(vm.id, on=False)
    click.echo(f"{vm.metadata.name} goes on")
