"""Joining a client to a VM's console, and to the ports of a pod's guest."""

import asyncio
import os
import socket
from asyncio.staggered import staggered_race
from collections.abc import Sequence
from functools import partial

from virtlet.console.console_files import ConsoleFiles
from virtlet.console.hub import ConsoleHub
from virtlet.console.live_console import BACKLOG_LIMIT, Attachment, EndReason
from virtlet.core.guest_sessions.screens import SCREEN_PORT, Screens
from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodPhase, VmPhase
from virtlet.errors import (
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    VirtletError,
)
from virtlet.model.vm import Vm
from virtlet.streaming.handlers import AttachRequest, PortForwardRequest, SessionStreams
from virtlet.streaming.lifetime import cancel

CHUNK = 64 * 1024
SILENCE = 5.0
"""Seconds without output after which a session ends whose client has ended a `stdinOnce` input."""
END_OF_FILE = b"\x04"
"""Ctrl-D: what ends the input of whoever reads a terminal, where it begins a line; within one it
only hands over the line so far."""


class ConsoleAttacher:
    """Serves attach sessions: an AttachRunner over the console hub.

    Args:
        context: the manager.
        hub: lets people at the consoles.
        silence: seconds, see SILENCE.
    """

    def __init__(self, context: Context, hub: ConsoleHub, silence: float = SILENCE) -> None:
        self._context = context
        self._hub = hub
        self._silence = silence

    def check(self, vm_id: str) -> ConsoleFiles:
        """The console of a VM that can be attached to now.

        Raises:
            NotFound: no such VM.
            FailedPrecondition: it does not run.
        """
        return self._context.consoles.files(self._running(vm_id))

    def _running(self, vm_id: str) -> Vm:
        record = self._context.store.known_vm(vm_id)
        if record.phase is not VmPhase.RUNNING:
            raise FailedPrecondition(
                f"VM {record.vm.name} does not run, but is {record.state}: it has no console"
            )
        return record.vm

    async def run(self, request: AttachRequest, streams: SessionStreams) -> None:
        """Stay until the client detaches, the VM ends, or there is nothing to stay for.

        The latter is where the container's input is for one client (`stdinOnce`) who has ended it:
        the guest gets the end of the input, and has answered it.

        Raises:
            ResourceExhausted: the client did not keep up.
            Unavailable: the manager stops, or the console cannot be read any more.
            NotFound, FailedPrecondition: as for `check`.
        """
        vm = self._running(request.container_id)
        files = self._context.consoles.files(vm)
        attachment = await asyncio.to_thread(self._hub.attach, files)
        attachment.socket.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=attachment.socket)
        typing = asyncio.create_task(_type(streams, writer, once=vm.config.stdin_once))
        silence = self._silence if vm.config.stdin_once and streams.stdin else None
        try:
            while data := await _output(reader, typing, silence):
                if streams.stdout is not None:
                    await streams.stdout.write(data)
        finally:
            writer.transport.abort()
            attachment.close()
            await cancel(typing)
        if error := _failure(attachment):
            raise error


async def _output(
    reader: asyncio.StreamReader, typing: asyncio.Task[None], silence: float | None
) -> bytes:
    """What comes next; b"" at the end, be it a reset: the hub lets go with keys still unread.

    Args:
        reader: the console.
        typing: ends with the client's input.
        silence: seconds without output that are an end too, after the end of the input; None for
            never.
    """
    reading = asyncio.ensure_future(reader.read(CHUNK))
    try:
        if silence is not None:
            await asyncio.wait((reading, typing), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((reading,), timeout=silence)
            if not reading.done():
                return b""
        return await reading
    except ConnectionError:
        return b""
    finally:
        await cancel(reading)


def _failure(attachment: Attachment) -> VirtletError | None:
    """What to tell a client whose attachment was ended for another reason than its own or the
    VM's end."""
    whose = f"the console of VM {attachment.vm_id}"
    match attachment.reason:
        case EndReason.SLOW:
            return ResourceExhausted(
                f"what {whose} printed was taken too slowly, the client was more than "
                f"{BACKLOG_LIMIT >> 20} MiB behind: attach again, and read it faster; the pod's "
                "log (kubectl logs) has what is missing"
            )
        case EndReason.STOPPED:
            return Unavailable(f"the manager stops, {whose} goes on: attach again when it is back")
        case EndReason.FAILED:
            return Unavailable(
                f"{whose} cannot be read: see the log of the node's virtlet, and attach again"
            )
    return None


async def _type(streams: SessionStreams, writer: asyncio.StreamWriter, *, once: bool) -> None:
    """Pass on what the client types; without stdin, and after its end, others type on.

    Args:
        streams: the client's.
        writer: the console.
        once: whether to tell the guest that the input has ended.
    """
    if streams.stdin is None:
        return
    last = b"\n"
    while data := await streams.stdin.read():
        writer.write(data)
        await writer.drain()
        last = data[-1:]
    if once:
        writer.write(END_OF_FILE if last in b"\r\n" else END_OF_FILE * 2)
        await writer.drain()


HEAD_START = 0.25
"""Seconds that an address has before the next is tried beside it; source: RFC 8305, section 5."""


async def connect(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect over TCP; an address that is silent holds up none of the others.

    Args:
        addresses: at least one, IPv4 or IPv6, in the order in which they are tried.
        port: the same everywhere.

    Returns:
        A socket that does not block.

    Raises:
        OSError: none of them took the connection; why the first one did not.
    """
    attempts = [partial(_connect, address, port) for address in addresses]
    connection: socket.socket | None
    connection, _, errors = await staggered_race(attempts, HEAD_START)
    if connection is not None:
        return connection
    raise next(error for error in errors if error is not None)


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


class GuestDialer:
    """Serves port-forward sessions: a PortDialer to the guest's addresses.

    The guest has the pod's addresses itself, so it is dialled from the node, as the kubelet's
    probes do: from the pod's namespace, where only the bridge is, it would send its answers past
    us (docs/decisions/0013-port-forward-from-the-node.md). A port that it serves on its own
    loopback only is out of reach.

    Port 5900 is the screen's, where the VM has one.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._screens = Screens(context)

    def check(self, pod_id: str) -> tuple[str, ...]:
        """Addresses of a pod whose ports can be reached, the primary first.

        Raises:
            NotFound: no such pod.
            FailedPrecondition: it is stopped, or has no address.
        """
        record = self._context.store.known_pod(pod_id)
        addresses = record.network.ips if record.network else ()
        if record.phase is not PodPhase.READY or not addresses:
            raise FailedPrecondition(f"pod {record.pod.name} is stopped or has no address")
        for vm in self._context.store.vms_of(pod_id):
            if vm.phase is VmPhase.HIBERNATED:
                raise FailedPrecondition(f"VM {vm.vm.name} is {vm.state}: nothing answers there")
        return addresses

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        """Connect to the pod's address that answers first on the port, or to its screen.

        Errors are those of `connect` and `Screens.open`.
        """
        addresses = self.check(request.sandbox_id)
        if port != SCREEN_PORT:
            return await connect(addresses, port)
        screen = self._screens.of(request.sandbox_id)
        if screen is not None:
            return await self._screens.open(screen)
        try:
            return await connect(addresses, port)
        except OSError as error:
            raise FailedPrecondition(
                f"the VM has no screen, as its flavor has no `video`, and its guest serves no VNC "
                f"itself: {os.strerror(error.errno or 0).lower()}"
            ) from None
