"""One console with people attached: output fanned out, one keyboard shared by all.

The emulator takes no notice of any of this: output is read from the raw file, as the log
writer reads it, and what is typed goes into a FIFO. A stopped manager or a stuck reader cannot
hold the guest back.
"""

import contextlib
import enum
import errno
import os
import socket
import stat
from pathlib import Path

from attrs import define, field

from virtlet.console.console_files import ConsoleFiles, RawFile
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable

READ_SIZE = 64 * 1024
BACKLOG_LIMIT = 1024 * 1024
"""Bytes of output a reader may be behind before it is dropped."""
READERS_LIMIT = 16
"""Readers of one console at a time."""
KEYS_LIMIT = 64 * 1024
"""Bytes typed that the guest has not taken, after which nobody's keys are read for a while."""
SKIPPED = b"\r\n[console output was skipped here]\r\n"
"""Shown where output was given back to the filesystem before it could be shown."""


class EndReason(enum.Enum):
    """Why an attachment ended."""

    DETACHED = "detached"
    """The user pressed the detach key or closed the connection."""
    GONE = "gone"
    """The emulator has exited; all it printed was passed on."""
    SLOW = "slow"
    """The reader fell behind by more than BACKLOG_LIMIT."""
    STOPPED = "stopped"
    """The manager stops; attaching again later works."""
    FAILED = "failed"
    """The console could not be read; the manager's own log says why."""


@define(eq=False)
class Attachment:
    """A console someone is attached to: one end of a connected pair of stream sockets.

    What arrives on the socket is what the guest prints from now on; what is sent is typed.
    Shutting it down for writing ends the typing, closing it detaches. It reads as ended (EOF)
    when the hub ends the attachment; `reason` then says why.
    """

    vm_id: str
    socket: socket.socket
    """Blocking; for asyncio, `asyncio.open_connection(sock=...)`."""
    reason: EndReason | None = None

    def close(self) -> None:
        """Detach. Idempotent."""
        self.socket.close()


@define(eq=False)
class Reader:
    """The hub's side of one attachment."""

    attachment: Attachment
    socket: socket.socket
    """Not blocking."""
    detach_key: bytes
    """One byte, or empty for none."""
    backlog: bytearray = field(factory=bytearray)
    """Output the reader has not taken yet."""
    typing: bool = True
    """Whether more keys may come."""
    detaching: bool = False
    """Whether the detach key was pressed."""

    def feed(self, data: bytes) -> None:
        """Pass output on, or keep what the reader does not take now."""
        self.backlog += data
        self.drain()

    def drain(self) -> None:
        """Pass on what was kept. Ignores a reader that is gone, which its other end shows."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self.backlog:
                del self.backlog[: self.socket.send(memoryview(self.backlog)[:READ_SIZE])]

    def keys(self, limit: int) -> bytes:
        """Read keys, up to the detach key. No key and `typing` false: there are no more."""
        try:
            keys = self.socket.recv(limit)
        except BlockingIOError:
            return b""
        except ConnectionError:
            keys = b""
        if not keys:
            self.typing = False
        if not self.detach_key:
            return keys
        keys, pressed, _ = keys.partition(self.detach_key)
        self.detaching = bool(pressed)
        return keys

    def end(self, reason: EndReason) -> None:
        """End the attachment."""
        self.attachment.reason = reason
        self.socket.close()


class LiveConsole:
    """The console of a running VM.

    Raises:
        FailedPrecondition: no emulator has the console open.
        Unavailable: the console's files cannot be opened.
    """

    def __init__(self, files: ConsoleFiles) -> None:
        self.files = files
        try:
            self.keyboard = _open_keyboard(files.keyboard)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                raise FailedPrecondition(
                    f"VM {files.vm_id} has no console: it is not running; start it first"
                ) from error
            raise Unavailable(f"cannot type on the console of {files.vm_id}: {error}") from error
        try:
            self.raw = RawFile(files.raw)
        except OSError as error:
            os.close(self.keyboard)
            raise Unavailable(f"cannot read the console of {files.vm_id}: {error}") from error
        self.offset = self.raw.size()
        self.readers: list[Reader] = []
        self.typed = bytearray()

    def attach(self, detach_key: bytes) -> Attachment:
        """Add a reader, who sees what is printed from now on.

        Raises:
            ResourceExhausted: there are as many as may be.
        """
        if len(self.readers) >= READERS_LIMIT:
            raise ResourceExhausted(
                f"{READERS_LIMIT} clients are attached to the console of VM {self.files.vm_id}: "
                "end one of them first"
            )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reader = Reader(Attachment(self.files.vm_id, theirs), ours, detach_key)
        self.readers.append(reader)
        return reader.attachment

    def pump(self) -> bool:
        """Pass on a piece of what was printed. Returns whether there is more at once."""
        data = self.raw.read(self.offset, READ_SIZE)
        if not data:
            return False
        more = len(data) == READ_SIZE
        start = self.raw.first_data(self.offset)  # after reading: what was read may be a hole now
        if start > self.offset:
            data = SKIPPED
            self.offset = start
        else:
            self.offset += len(data)
        for reader in list(self.readers):
            reader.feed(data)
            if len(reader.backlog) > BACKLOG_LIMIT:
                self.drop(reader, EndReason.SLOW)
        return more

    def take_keys(self, reader: Reader) -> None:
        """Read what one user typed, if there is room, and pass it to the guest."""
        if len(self.typed) >= KEYS_LIMIT:
            return
        self.typed += reader.keys(KEYS_LIMIT - len(self.typed))
        self.type()
        if reader.detaching:
            self.drop(reader, EndReason.DETACHED)

    def type(self) -> None:
        """Give the guest keys, as many as its FIFO takes."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.typed:
                del self.typed[: os.write(self.keyboard, self.typed)]

    def drop(self, reader: Reader, reason: EndReason) -> None:
        """End one attachment."""
        self.readers.remove(reader)
        reader.end(reason)

    def release(self) -> None:
        """End the attachments of those who have taken all there will be."""
        for reader in list(self.readers):
            if not reader.backlog:
                self.drop(reader, EndReason.GONE)

    def close(self, reason: EndReason) -> None:
        """End all attachments and close the console."""
        for reader in list(self.readers):
            self.drop(reader, reason)
        os.close(self.keyboard)
        self.raw.close()


def _open_keyboard(path: Path) -> int:
    """Open the FIFO for writing; OSError, ENXIO when no emulator has it open."""
    keyboard = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(keyboard).st_mode):
        os.close(keyboard)
        raise OSError(errno.EINVAL, "not a FIFO", str(path))
    return keyboard
