"""The commands that speak with a guest: exec and attach."""

import sys

import click

from virtlet.cli.attended import AttendedClient
from virtlet.cli.guest_session import GuestSession
from virtlet.cli.targets import newest_vm, pod_argument, pod_id, socket_option
from virtlet.cri import api_pb2 as cri

_stdin = click.option("-i", "--stdin", is_flag=True, help="Give it what is typed or piped.")
_tty = click.option("-t", "--tty", is_flag=True, help="Give it a terminal of this one's size.")


@click.command(name="exec", context_settings={"allow_interspersed_args": False})
@_stdin
@_tty
@socket_option
@pod_argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_command(pod: str, command: tuple[str, ...], stdin: bool, tty: bool, socket: str) -> None:
    """Run a command in a pod's VM, by its guest agent.

    Its exit code is this command's. Options of virtlet come before the pod's name:
    `virtlet exec -it web sh`.
    """
    with AttendedClient(socket) as client:
        request = cri.ExecRequest(
            container_id=newest_vm(client, pod_id(client, pod)).id,
            cmd=command,
            stdin=stdin,
            stdout=True,
            stderr=not tty,
            tty=tty,
        )
        url, network = client.call("Exec", request).url, client.other_network()
    sys.exit(GuestSession(url, stdin=stdin, tty=tty, network=network).run())


@click.command()
@_stdin
@_tty
@socket_option
@pod_argument("pod")
def attach(pod: str, stdin: bool, tty: bool, socket: str) -> None:
    """Attach to the serial console of a pod's VM.

    What it prints from now on is shown; `virtlet logs` shows what it printed before. With -it it
    takes keys, and Ctrl-] leaves it.
    """
    with AttendedClient(socket) as client:
        request = cri.AttachRequest(
            container_id=newest_vm(client, pod_id(client, pod)).id,
            stdin=stdin,
            stdout=True,
            stderr=not tty,
            tty=tty,
        )
        url, network = client.call("Attach", request).url, client.other_network()
    sys.exit(GuestSession(url, stdin=stdin, tty=tty, network=network).run())
