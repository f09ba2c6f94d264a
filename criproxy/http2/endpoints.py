"""The side of a connection that makes calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from criproxy.http2.connection import PREFACE, Connection
from criproxy.http2.faults import ConnectionFault, ErrorCode, Refusal
from criproxy.http2.headers import Header, first
from criproxy.http2.outbox import Outbox
from criproxy.http2.stream import Sink, Stream

_LAST_STREAM_ID = (1 << 31) - 1
_HEADERS_WITHIN = Refusal(ErrorCode.PROTOCOL_ERROR, "headers within the answer")


class ClientConnection(Connection):
    """A connection to a server.

    Args:
        outbox: the process' one.
        on_leaving: called once with the reason when the server takes no new calls, or is gone:
            before the calls under way hear of it, since new ones may follow from that.
    """

    def __init__(self, outbox: Outbox, on_leaving: Callable[[str], None]) -> None:
        super().__init__(outbox)
        self._on_leaving = on_leaving
        self._next_stream = 1
        self._answered: set[int] = set()

    def open(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Start a call; the caller has seen that `draining` is false."""
        stream = Stream(self, self._next_stream, self._peer_window, sink)
        self._next_stream += 2
        self.streams[stream.id] = stream
        stream.send_headers(headers)
        if self._next_stream > _LAST_STREAM_ID:
            self._told_to_leave(_LAST_STREAM_ID, "stream numbers used up")
        return stream

    def forget(self, stream: Stream) -> None:
        """Both sides of the stream have ended."""
        self._answered.discard(stream.id)
        super().forget(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that there are no more calls to be made, and every open call."""
        if not self.draining:
            self.draining = True
            self._on_leaving(self._fault or (str(exc) if exc else "connection closed"))
        super().connection_lost(exc)

    def _greet(self) -> None:
        self._write(PREFACE)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_stream

    def _told_to_leave(self, last_stream: int, reason: str) -> None:
        if not self.draining:
            self.draining = True
            self._on_leaving(f"leaving: {reason}")
        for stream in [s for s in self.streams.values() if s.id > last_stream]:
            sink = stream.sink
            stream.local_closed = stream.remote_closed = True
            self.forget(stream)
            sink.on_lost(reason)
        self._close_if_idle()

    def _unknown_stream(
        self, stream_id: int, headers: list[Header], refusal: Refusal | None, ended: bool
    ) -> None:
        if self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "an answer to no call")

    def _more_headers(self, stream: Stream, headers: list[Header], ended: bool) -> None:
        sink = stream.sink
        if stream.id in self._answered:
            if not ended:
                stream.give_up(_HEADERS_WITHIN)
                return
            self._remote_end(stream)
            sink.on_trailers(headers)
            return
        status = first(headers, b":status")
        if status is not None and status.startswith(b"1"):
            return
        self._answered.add(stream.id)
        if ended:
            self._remote_end(stream)
        sink.on_headers(headers, ended)

    def _remote_end(self, stream: Stream) -> None:
        super()._remote_end(stream)
        if not stream.local_closed:
            # The answer is complete; the server wants no more of the request.
            stream.reset(ErrorCode.NO_ERROR)
