"""One stream of a connection, and the outbox that gathers writes of all connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from criproxy.http2.frames import ErrorCode, Header, Refusal

if TYPE_CHECKING:
    from criproxy.http2.http2_connection import Connection

#: Bytes that a peer may send on one stream before it must wait for us.
STREAM_WINDOW = 1 << 20


class Sink:
    """Receives what arrives on a stream. The connection's reader calls the methods.

    Inherit and override what is of interest; the methods here do nothing.
    """

    def on_headers(self, headers: list[Header], ended: bool) -> None:
        """Take the response's headers (client streams); `ended` if nothing follows."""

    def on_data(self, data: bytes, ended: bool) -> None:
        """Take bytes; call `Stream.consumed(len(data))` when more may follow."""

    def on_trailers(self, headers: list[Header]) -> None:
        """Take the trailers; nothing follows."""

    def on_reset(self, code: int, reason: str) -> None:
        """The stream was reset, by the peer or for what the peer sent."""

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""

    def on_drained(self) -> None:
        """All queued bytes were sent."""


#: The sink of streams that have ended, and of new ones without a sink.
NOBODY = Sink()


class Stream:
    """One call on a connection; `sink` receives what arrives."""

    __slots__ = (
        "_conn",
        "_freed",
        "_queue",
        "_queued",
        "_trailers",
        "end_queued",
        "id",
        "local_closed",
        "receive_window",
        "remote_closed",
        "send_window",
        "sink",
    )

    def __init__(self, conn: Connection, stream_id: int, send_window: int, sink: Sink) -> None:
        self._conn = conn
        self.id = stream_id
        self.sink = sink
        self.send_window = send_window
        self.receive_window = STREAM_WINDOW
        self._freed = 0
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._trailers: Sequence[Header] | None = None
        self.end_queued = False
        self.local_closed = False
        self.remote_closed = False

    @property
    def queued(self) -> int:
        """Bytes that wait for the peer's window."""
        return self._queued

    @property
    def open(self) -> bool:
        """Whether more can be sent."""
        return not (self.local_closed or self.end_queued)

    def send_headers(self, headers: Sequence[Header], ended: bool = False) -> None:
        """Send the first headers of our side."""
        if not self.open:
            return
        self._conn.write_headers(self, headers, ended)
        if ended:
            self._end_sent()

    def send_data(self, data: bytes, ended: bool = False) -> None:
        """Queue bytes; they are sent as the peer's window allows."""
        if not self.open:
            return
        if data:
            self._queue.append(memoryview(data))
            self._queued += len(data)
        self.end_queued = ended
        self.pump()

    def send_trailers(self, headers: Sequence[Header]) -> None:
        """Queue the trailers behind the queued bytes."""
        if not self.open:
            return
        self._trailers = headers
        self.end_queued = True
        self.pump()

    def pump(self) -> None:
        """Send what the windows allow."""
        if self.local_closed:
            return
        conn, queue = self._conn, self._queue
        had_data = bool(queue)
        while queue:
            room = min(self.send_window, conn.room())
            if room <= 0:
                return
            chunk = queue[0]
            if len(chunk) > room:
                queue[0] = chunk[room:]
                chunk = chunk[:room]
            else:
                queue.popleft()
            self._queued -= len(chunk)
            last = self.end_queued and not queue and self._trailers is None
            conn.write_data(self, chunk, last)
            if last:
                self._end_sent()
        if self.end_queued and not self.local_closed:
            if self._trailers is None:
                conn.write_data(self, memoryview(b""), True)
            else:
                conn.write_headers(self, self._trailers, True)
            self._end_sent()
        if had_data:
            self.sink.on_drained()

    def flush(self) -> None:
        """Write to the socket now, not at the end of this turn of the event loop."""
        self._conn.flush()

    def consumed(self, size: int) -> None:
        """Allow the peer as many bytes again: `size` received bytes were passed on."""
        self._freed += size
        if self._freed >= STREAM_WINDOW // 2 and not self.remote_closed:
            self.receive_window += self._freed
            self._conn.write_window(self.id, self._freed)
            self._freed = 0

    def give_up(self, refusal: Refusal) -> None:
        """Reset the stream for what the peer sent; tell both the peer and the sink."""
        sink = self.sink
        self.reset(refusal.code)
        sink.on_reset(refusal.code, refusal.reason)

    def reset(self, code: ErrorCode) -> None:
        """Reset the stream; tell the peer, but not the sink."""
        if self.local_closed and self.remote_closed:
            return
        self.local_closed = self.remote_closed = True
        self._queue.clear()
        self._queued = 0
        self._conn.write_reset(self, code)

    def remote_ended(self) -> None:
        """Handle the peer's last frame."""
        self.remote_closed = True
        if self.local_closed:
            self._conn.forget(self)

    def _end_sent(self) -> None:
        self.local_closed = True
        if self.remote_closed:
            self._conn.forget(self)
        else:
            self._conn.half_closed(self)


class Flushable(Protocol):
    """Something with bytes to be sent."""

    def flush(self) -> None:
        """Send them."""


class Outbox:
    """The connections that have something to flush.

    A frame from one connection is mostly sent on another. Flushing both at the end of the same
    callback saves a turn of the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Flushable, None] = {}
        self._reading = False
        self._scheduled = False

    def add(self, connection: Flushable) -> None:
        """Flush a connection soon, once."""
        self._waiting[connection] = None
        if not self._reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def begin(self) -> None:
        """A connection starts to read: `end` flushes what that causes."""
        self._reading = True

    def end(self) -> None:
        """The connection has read all there was."""
        self._reading = False
        self._flush()

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            for connection in waiting:
                connection.flush()
