"""Bytes to and from one client, and to its streams' handlers, with bounded buffers everywhere."""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from virtlet.streaming.handlers import StreamClosed

_READ_BUFFER = 512 * 1024
_TCP_ESTABLISHED = 1  # include/net/tcp_states.h
# Of struct tcp_info, linux/tcp.h: retransmits and probes since anything came back, and the
# milliseconds since the last acknowledgement.
_SILENCE = struct.Struct("=2xBB52xI")


class Wire(Protocol):
    """A byte stream to the client: a connection, or a tunnel inside one."""

    async def read(self) -> bytes:
        """Return the next bytes, b"" when the client has finished.

        Raises:
            OSError: the connection broke.
        """

    async def write(self, data: bytes) -> None:
        """Send data after all that waits already; returns when there is room for more.

        Raises:
            OSError: the connection broke.
        """

    def probe(self, nothing: bytes) -> None:
        """See whether the client is there, while nothing is read from it.

        Args:
            nothing: bytes without a meaning for the client, sent where nothing else waits to be:
                only sending makes a vanished client, or the proxy before it, answer.

        Raises:
            OSError: the client is gone.
        """


class TcpWire(asyncio.Protocol):
    """An accepted connection, plain or TLS.

    asyncio's own streams copy each byte three times more on its way in, which halves the speed
    of a port-forward; hence a protocol of our own.

    Args:
        client: the connection; the loop closes it. Not the transport's view of it, which asyncio's
            TLS forgets with the connection and uvloop answers with a ValueError then.
        write_buffer: bytes that may wait for the network before writers do.
    """

    def __init__(self, client: socket.socket, write_buffer: int) -> None:
        self._socket = client
        self._write_buffer = write_buffer
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._error: Exception | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        # One writer at a time, in order of arrival: no stream starves another, and what waits
        # is at most the buffer and one piece.
        self._turn = asyncio.Lock()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._write_buffer)

    def data_received(self, data: bytes) -> None:
        """Queue what came, and hold the client back once that is much."""
        self._pieces.append(data)
        self._waiting += len(data)
        self._readable.set()
        if self._waiting >= _READ_BUFFER:
            self._connected().pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more; without TLS it may still want to receive.

        Under TLS, uvloop drops what it has not decrypted by now, as after a reset: this end says
        nothing of whether all has come.
        """
        self._ended = True
        self._readable.set()
        return self._connected().get_extra_info("ssl_object") is None

    def connection_lost(self, error: Exception | None) -> None:
        """Wake whoever waits for the client."""
        self._ended = True
        self._error = error
        for event in (self._readable, self._writable, self._lost):
            event.set()

    def pause_writing(self) -> None:
        """The network is slower than we are."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The network has caught up."""
        self._writable.set()

    # What sessions call.

    async def read(self) -> bytes:
        """Return the next bytes, b"" when the client has finished."""
        while not self._pieces:
            if self._error:
                raise ConnectionResetError(f"the connection broke: {self._error}")
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        piece = self._pieces.popleft()
        before, self._waiting = self._waiting, self._waiting - len(piece)
        if before >= _READ_BUFFER > self._waiting:
            self._connected().resume_reading()
        return piece

    def unread(self, data: bytes) -> None:
        """Put back what was read too much."""
        if data:
            self._pieces.appendleft(data)
            self._waiting += len(data)
            self._readable.set()

    async def write(self, data: bytes) -> None:
        """Send data; returns when there is room for more."""
        async with self._turn:
            transport = self._connected()
            if transport.is_closing():
                raise ConnectionResetError("the client's connection is closed")
            transport.write(data)
            await self._writable.wait()

    def probe(self, nothing: bytes) -> None:
        """See whether the client is there: by the socket's state, as reading is held back."""
        if self._tcp_info(1) != bytes([_TCP_ESTABLISHED]):
            raise ConnectionResetError("the client hung up")
        if self._writable.is_set() and not self._turn.locked():
            self._connected().write(nothing)

    async def watch(self, seconds: float) -> None:
        """Return never; see whether the client's host is there while data is on its way to it.

        TCP keep-alive rests meanwhile, and the kernel itself tries for a quarter of an hour. A
        client that takes nothing is not meant: its host answers when it is asked for room, which
        the kernel does ever more rarely, so one unanswered question says nothing.

        Raises:
            ConnectionResetError: it has left several tries unanswered, and that for so long.
        """
        while True:
            await asyncio.sleep(seconds / 6)
            retransmits, probes, silent = _SILENCE.unpack(self._tcp_info(_SILENCE.size))
            if retransmits + probes > 1 and silent > seconds * 1000:
                raise ConnectionResetError(f"nothing is acknowledged for {seconds:g} seconds")

    async def hang_up(self, patience: float) -> None:
        """Close without loss: the client gets to take what was sent as long as it does take it.

        Args:
            patience: seconds without progress, and seconds for the client to hang up as well.
        """
        transport = self._connected()
        if self._lost.is_set():
            return
        # Not 0: under TLS, asyncio takes an empty buffer for one that has reached that.
        transport.set_write_buffer_limits(high=1, low=0)
        before = -1
        while (left := transport.get_write_buffer_size()) and left != before:
            before = left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._writable.wait()
        # Closing on unread data would make the kernel throw away what the client has not read.
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
        with contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(patience):
                while await self.read():
                    pass
                transport.close()
                await self._lost.wait()

    async def abort(self) -> None:
        """Close at once; returns when the socket is closed."""
        self._connected().abort()
        await self._lost.wait()

    def _tcp_info(self, size: int) -> bytes:
        """The beginning of the kernel's struct tcp_info; zeros once the socket is closed."""
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return bytes(size)

    def _connected(self) -> asyncio.Transport:
        assert self._transport is not None, "asyncio connects before anything else"
        return self._transport


# What a queued piece costs beside its bytes, so that a flood of tiny pieces is bounded too.
_PIECE_COST = 64

_LOOK_SECONDS = 1.0


class Inbox:
    """Bytes in order, one reader, one feeder.

    The feeder asks `full` before each `put` and waits with `room`; `put` itself never waits,
    so the queue holds at most the limit and one piece.

    Args:
        limit: returns how many bytes may wait; it may change over time.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._cost = 0
        self._ended = False
        self._discarding = False
        self._error: StreamClosed | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def full(self) -> bool:
        """Whether the feeder has to wait."""
        return not self._writable.is_set()

    @property
    def ended(self) -> bool:
        """Whether the feeder has said its last word."""
        return self._ended

    def put(self, data: bytes) -> None:
        """Append data; dropped once the reader has lost interest."""
        if not data or self._discarding or self._error:
            return
        self._pieces.append(data)
        self._cost += len(data) + _PIECE_COST
        self._readable.set()
        if self._cost >= self._limit():
            self._writable.clear()

    def end(self) -> None:
        """No more follows; the reader still gets what is queued."""
        self._ended = True
        self._readable.set()

    def fail(self, error: StreamClosed) -> None:
        """The stream broke: what is queued is dropped and readers get the error."""
        if not self._ended or self._pieces:
            self._error = self._error or error
        self._clear()
        self._readable.set()

    def discard(self) -> None:
        """The reader is gone: drop what is queued and what still comes."""
        self._discarding = True
        self._clear()

    def _clear(self) -> None:
        self._pieces.clear()
        self._cost = 0
        self._writable.set()

    async def room(self) -> None:
        """Wait until the queue is no longer full."""
        await self._writable.wait()

    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes, or b"" at the end.

        Raises:
            StreamClosed: the stream broke.
        """
        while not self._pieces:
            if self._error:
                raise self._error
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        taken, left = [], limit
        while self._pieces and left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                piece = piece[:left]
            else:
                self._cost -= _PIECE_COST
            taken.append(piece)
            left -= len(piece)
        self._cost -= limit - left
        if self._cost < self._limit():
            self._writable.set()
        return taken[0] if len(taken) == 1 else b"".join(taken)


class Lifeline(Protocol):
    """Shows whether the client is there while nothing is read from it."""

    def probe(self) -> None:
        """Raise OSError if the client is gone."""


async def wait_for_room(inbox: Inbox, lifeline: Lifeline, patience: float | None = None) -> bool:
    """Wait until the inbox has room; False if its reader takes nothing for `patience` seconds.

    Raises:
        OSError: the client went away meanwhile.
    """
    waited = 0.0
    while inbox.full:
        if patience is not None and waited >= patience:
            return False
        look = _LOOK_SECONDS if patience is None else min(_LOOK_SECONDS, patience - waited)
        try:
            async with asyncio.timeout(look):
                await inbox.room()
        except TimeoutError:
            waited += look
            lifeline.probe()
    return True
