"""The side of a connection that takes calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import ClassVar

from hyperframe.frame import SettingsFrame

from criproxy.http2.connection import PREFACE, Connection
from criproxy.http2.faults import ConnectionFault, ErrorCode, Refusal
from criproxy.http2.headers import Header
from criproxy.http2.outbox import Outbox
from criproxy.http2.stream import NOBODY, Stream

#: Calls that one client may have open at a time; a kubelet has a few dozen at most.
MAX_STREAMS = 4096
_HEADERS_WITHIN = Refusal(ErrorCode.PROTOCOL_ERROR, "headers within the request")

#: Called for every new call with its headers, and whether they end the request; sets the
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
        """Start as any connection, and say that it is there."""
        super().connection_made(transport)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Look for the client's preface first."""
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
        """The answer is complete before the request: the client need not send the rest."""
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
            stream.give_up(_HEADERS_WITHIN)
            return
        # gRPC has no request trailers; the end of the stream is all they can tell.
        sink = stream.sink
        stream.remote_ended()
        sink.on_data(b"", True)
