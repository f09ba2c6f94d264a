"""The two sides of a connection: the client, which makes calls, and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from hyperframe.frame import SettingsFrame

from criproxy.http2.frames import ConnectionFault, ErrorCode, Header, Refusal, first
from criproxy.http2.http2_connection import PREFACE, Connection
from criproxy.http2.stream import NOBODY, Outbox, Sink, Stream

_LAST_STREAM_ID = (1 << 31) - 1
_HEADERS_WITHIN_ANSWER = Refusal(ErrorCode.PROTOCOL_ERROR, "headers within the answer")


class ClientConnection(Connection):
    """A connection to a server.

    Args:
        outbox: the process' one.
        on_leaving: called once with the reason when the server takes no new calls or is gone.
            Called before the sinks of open calls are, because these may start new calls.
    """

    def __init__(self, outbox: Outbox, on_leaving: Callable[[str], None]) -> None:
        super().__init__(outbox)
        self._on_leaving = on_leaving
        self._next_stream = 1
        self._answered: set[int] = set()

    def open(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Start a call; `draining` must be false."""
        stream = Stream(self, self._next_stream, self._peer_window, sink)
        self._next_stream += 2
        self.streams[stream.id] = stream
        stream.send_headers(headers)
        if self._next_stream > _LAST_STREAM_ID:
            self._told_to_leave(_LAST_STREAM_ID, "stream numbers used up")
        return stream

    def forget(self, stream: Stream) -> None:
        """Drop a stream whose two sides have ended."""
        self._answered.discard(stream.id)
        super().forget(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """Call `on_leaving`, then tell every open call."""
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
                stream.give_up(_HEADERS_WITHIN_ANSWER)
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
            # The answer is complete: the server needs no more of the request.
            stream.reset(ErrorCode.NO_ERROR)


#: Calls that one client may have open at a time; a kubelet has a few dozen at most.
MAX_STREAMS = 4096
_HEADERS_WITHIN_REQUEST = Refusal(ErrorCode.PROTOCOL_ERROR, "headers within the request")

#: Called for every new call with its headers and whether they end the request; sets the
#: stream's sink.
OnCall = Callable[[Stream, list[Header], bool], None]


class ServerConnection(Connection):
    """A client's connection.

    Args:
        outbox: the process' one.
        on_call: called for every call; may answer at once.
        on_open: called with this connection when it is made.
    """

    _own_settings: ClassVar[Mapping[int, int]] = {SettingsFrame.MAX_CONCURRENT_STREAMS: MAX_STREAMS}

    def __init__(
        self, outbox: Outbox, on_call: OnCall, on_open: Callable[[ServerConnection], None]
    ) -> None:
        super().__init__(outbox)
        self._on_call = on_call
        self._on_open = on_open
        self._last_stream = 0
        self._preface = PREFACE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection and call `on_open`."""
        super().connection_made(transport)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Check the client's preface before the frames."""
        if self._preface:
            wanted = self._preface[: len(data)]
            if not data.startswith(wanted):
                self.abort(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
                return
            data = data[len(wanted) :]
            self._preface = self._preface[len(wanted) :]
        if data:
            super().data_received(data)

    def half_closed(self, stream: Stream) -> None:
        """Reset the stream: the answer is complete, so the client need not send the rest."""
        stream.reset(ErrorCode.NO_ERROR)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id > self._last_stream

    def _last_peer_stream(self) -> int:
        return self._last_stream

    def _unknown_stream(
        self, stream_id: int, headers: list[Header], refusal: Refusal | None, ended: bool
    ) -> None:
        if stream_id <= self._last_stream:
            return
        if stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream id {stream_id} of a client")
        self._last_stream = stream_id
        stream = Stream(self, stream_id, self._peer_window, NOBODY)
        if self.draining or len(self.streams) >= MAX_STREAMS:
            self.streams[stream_id] = stream
            stream.reset(ErrorCode.REFUSED_STREAM)
            return
        self.streams[stream_id] = stream
        if refusal is not None:
            stream.reset(refusal.code)
            return
        stream.remote_closed = ended
        self._on_call(stream, headers, ended)

    def _more_headers(self, stream: Stream, headers: list[Header], ended: bool) -> None:
        if not ended:
            stream.give_up(_HEADERS_WITHIN_REQUEST)
            return
        # gRPC has no request trailers: they only end the request.
        sink = stream.sink
        stream.remote_ended()
        sink.on_data(b"", True)
