"""The commands for a VM's screen, and what there is in place of virsh: vnc, screenshot, virsh."""

import contextlib
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from virtlet.cli.ending import CommandFailed, ended_by_signals
from virtlet.kubectl import rfb
from virtlet.kubectl.cluster import Kubectl, with_cluster
from virtlet.kubectl.sessions import Forwarding, forwarded, run, running

SCREEN_PORT = 5900
_VIEWERS = {
    "remote-viewer": "vnc://127.0.0.1:{port}",
    "vncviewer": "127.0.0.1::{port}",
    "xtigervncviewer": "127.0.0.1::{port}",
    "xtightvncviewer": "127.0.0.1::{port}",
    "gvncviewer": "127.0.0.1::{port}",
    "krdc": "vnc://127.0.0.1:{port}",
}
"""Viewer to how it is told an address."""
_SAID_SOON = 5.0
"""Seconds in which kubectl says why a connection was closed."""


@click.command()
@click.option(
    "--viewer",
    metavar="PROGRAM",
    default="",
    help="The viewer, with options if need be; {port} in it stands for the port at 127.0.0.1.",
)
@click.option("--proxy-only", is_flag=True, help="Start no viewer; print the address and stay.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port at 127.0.0.1 that leads to the screen; a free one without it.",
)
@click.argument("pod")
@with_cluster
def vnc(kubectl: Kubectl, viewer: str, proxy_only: bool, port: int, pod: str) -> None:
    """Show the screen of a VM in a viewer of this machine.

    A port of the loopback address leads to it for as long as the viewer runs. Whoever else looks at
    the screen goes on, and all have the same keyboard and pointer.
    """
    argv = [] if proxy_only else _viewer(viewer)
    with ended_by_signals(), _screen(kubectl, pod, port) as forwarding:
        _look_whether_it_is_shown(kubectl, pod, forwarding)
        if proxy_only:
            click.echo(f"vnc://127.0.0.1:{forwarding.port}")
            forwarding.wait()
            raise CommandFailed(f"kubectl port-forward has ended: {forwarding.said or 'silently'}")
        words = [word.replace("{port}", str(forwarding.port)) for word in argv]
        code = run(words, f"{words[0]} is not there")
        if code and forwarding.said:
            click.echo(f"kubectl port-forward: {forwarding.said}", err=True)
    sys.exit(code)


@click.command()
@click.argument("pod")
@click.argument("file", metavar="FILE.png")
@with_cluster
def screenshot(kubectl: Kubectl, pod: str, file: str) -> None:
    """Write what is on the screen of a VM to a PNG file; - is standard output."""
    with ended_by_signals(), _screen(kubectl, pod) as forwarding:
        try:
            with socket.create_connection(("127.0.0.1", forwarding.port)) as connection:
                picture = rfb.look(connection)
        except (rfb.NoPicture, OSError) as error:
            raise _no_screen(kubectl, pod, forwarding, str(error)) from None
    if file == "-":
        sys.stdout.buffer.write(picture.png())
    else:
        Path(file).write_bytes(picture.png())


_INSTEAD = {
    "console": "kubectl virtlet console POD",
    "define": "edit the pod's manifest, and run the pod again",
    "destroy": "kubectl delete pod POD --grace-period=0",
    "dominfo": "kubectl describe pod POD; on the node: virtlet inspect POD",
    "domstats": "kubectl virtlet top; on the node: virtlet stats",
    "dumpxml": "on the node: virtlet inspect POD -o json",
    "list": "kubectl virtlet vms",
    "qemu-agent-command": "kubectl exec POD -- COMMAND",
    "reboot": "kubectl exec POD -- reboot",
    "screenshot": "kubectl virtlet screenshot POD FILE.png",
    "shutdown": "kubectl delete pod POD, which gives the guest its grace period",
    "start": "kubectl apply -f POD.yaml",
    "undefine": "kubectl delete pod POD",
    "vncdisplay": "kubectl virtlet vnc POD",
}


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def virsh(words: tuple[str, ...]) -> None:
    """Say what does a command of virsh: no virsh reaches the VMs of a cluster."""
    command = next((word for word in words if not word.startswith("-")), "")
    why = (
        "no virsh reaches the VMs: the manager of each node has libvirt within itself, with no "
        "socket for others"
    )
    if command in _INSTEAD:
        raise CommandFailed(f"{why}. In place of `virsh {command}`: {_INSTEAD[command]}")
    click.echo("\n".join(f"  {name:18}  {instead}" for name, instead in _INSTEAD.items()))
    asked = f"; nothing does `virsh {command}`" if command and command != "help" else ""
    raise CommandFailed(f"{why}{asked}. What does the same is listed above")


def _viewer(wanted: str) -> list[str]:
    """The command line of a viewer, with {port} in place of the port.

    Raises:
        CommandFailed: it is not there, or none is.
    """
    if not wanted:
        found = next((name for name in _VIEWERS if shutil.which(name)), None)
        if found is None:
            raise CommandFailed(
                "no VNC viewer is there: install one (package virt-viewer or tigervnc-viewer), "
                "name yours by --viewer, or have the address printed by --proxy-only"
            )
        return [found, _VIEWERS[found]]
    try:
        words = shlex.split(wanted)
    except ValueError as error:
        raise CommandFailed(f"--viewer {wanted}: {error}") from None
    if not words or not shutil.which(words[0]):
        raise CommandFailed(f"viewer {wanted!r} is not there: install it, or name another one")
    if not any("{port}" in word for word in words):
        words.append(_VIEWERS.get(Path(words[0]).name, "127.0.0.1::{port}"))
    return words


@contextlib.contextmanager
def _screen(kubectl: Kubectl, pod: str, local: int = 0) -> Iterator[Forwarding]:
    """Have a local port lead to the screen of a VM.

    Raises:
        CommandFailed: it does not run, or may not be reached; says why.
    """
    found = kubectl.pod(pod)
    running(kubectl, found)
    with forwarded(kubectl, found["metadata"]["name"], SCREEN_PORT, local) as forwarding:
        yield forwarding


def _look_whether_it_is_shown(kubectl: Kubectl, pod: str, forwarding: Forwarding) -> None:
    """Connect once before a viewer does, which would not say what is wrong.

    Raises:
        CommandFailed: there is no screen; says why.
    """
    try:
        with socket.create_connection(("127.0.0.1", forwarding.port), 60) as connection:
            # All that a server says unasked: kubectl takes unread bytes for a broken connection.
            shown = connection.recv(len(rfb.VERSION), socket.MSG_WAITALL).startswith(b"RFB ")
    except OSError:
        shown = False
    if not shown:
        raise _no_screen(kubectl, pod, forwarding, "no VNC server answers")


def _no_screen(kubectl: Kubectl, pod: str, forwarding: Forwarding, why: str) -> CommandFailed:
    """What is wrong with a screen, in the words of the node where they come."""
    until = time.monotonic() + _SAID_SOON
    while not forwarding.said and time.monotonic() < until:
        time.sleep(0.05)
    name = pod.removeprefix("pod/")
    return CommandFailed(
        f"the screen of pod {kubectl.namespace}/{name} is not shown: {forwarding.said or why}"
    )
