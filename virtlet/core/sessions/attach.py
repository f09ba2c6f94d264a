"""Joining a client to a VM's console."""

import asyncio

from virtlet.core.console.files import ConsoleFiles
from virtlet.core.console.hub import ConsoleHub
from virtlet.core.console.live import BACKLOG_LIMIT, Attachment, EndReason
from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import VmPhase
from virtlet.core.streaming.sessions import AttachRequest, SessionStreams
from virtlet.core.streaming.tasks import cancel
from virtlet.errors import (
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VirtletError,
)

CHUNK = 64 * 1024


class ConsoleAttacher:
    """Serves attach sessions: an AttachRunner over the console hub."""

    def __init__(self, context: Context, hub: ConsoleHub) -> None:
        self._context = context
        self._hub = hub

    def check(self, vm_id: str) -> ConsoleFiles:
        """The console of a VM that can be attached to now.

        Raises:
            NotFound: no such VM.
            FailedPrecondition: it does not run.
        """
        record = self._context.store.vms.get(vm_id)
        if record is None or not record.visible:
            raise NotFound(f"there is no container {vm_id}")
        if record.phase is not VmPhase.RUNNING:
            raise FailedPrecondition(f"VM {record.vm.name} does not run: it has no console")
        return self._context.consoles.files(record.vm)

    async def run(self, request: AttachRequest, streams: SessionStreams) -> None:
        """Stay until the client detaches or the VM ends.

        Raises:
            ResourceExhausted: the client did not keep up.
            Unavailable: the manager stops, or the console cannot be read any more.
            NotFound, FailedPrecondition: as for `check`.
        """
        files = self.check(request.container_id)
        attachment = await asyncio.to_thread(self._hub.attach, files)
        attachment.socket.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=attachment.socket)
        typing = asyncio.create_task(_type(streams, writer))
        try:
            while data := await _output(reader):
                if streams.stdout is not None:
                    await streams.stdout.write(data)
        finally:
            writer.transport.abort()
            attachment.close()
            await cancel(typing)
        if error := _failure(attachment):
            raise error


async def _output(reader: asyncio.StreamReader) -> bytes:
    """What comes next; b"" at the end, be it a reset: the hub lets go with keys still unread."""
    try:
        return await reader.read(CHUNK)
    except ConnectionError:
        return b""


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


async def _type(streams: SessionStreams, writer: asyncio.StreamWriter) -> None:
    """Pass on what the client types; without stdin, and after its end, others type on."""
    if streams.stdin is None:
        return
    while data := await streams.stdin.read():
        writer.write(data)
        await writer.drain()
