"""One HTTP/2 connection over a unix socket, either side of it.

Frame formats come from hyperframe, header packing from hpack; what is here is the order of frames,
the windows and the life of streams (RFC 9113), and only as much of them as gRPC uses: no push, no
priorities, no upgrade. docs/decisions has why, and figures of h2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from hyperframe.frame import Frame, GoAwayFrame, PushPromiseFrame, RstStreamFrame, SettingsFrame

from criproxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME,
    MAX_HEADER_LIST,
    PING,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    FrameReader,
    Header,
    HeaderCodec,
    Refusal,
    frame_head,
)
from criproxy.http2.stream import NOBODY, STREAM_WINDOW, Outbox, Stream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65535
MAX_WINDOW = (1 << 31) - 1
#: Large, so that one unread stream does not block the other streams.
CONNECTION_WINDOW = 1 << 30
#: Seconds that the answer to a ping may wait to be sent with other frames.
_LAZY_SECONDS = 0.005

_FAILED = Refusal(ErrorCode.INTERNAL_ERROR, "criproxy failed at a frame; see its log")
_MORE_THAN_THE_WINDOW = Refusal(ErrorCode.FLOW_CONTROL_ERROR, "more bytes than the window allows")
_AFTER_THE_END = Refusal(ErrorCode.STREAM_CLOSED, "a frame after the end of the stream")
_WINDOW_OVERFLOW = Refusal(ErrorCode.FLOW_CONTROL_ERROR, "a window that overflows")


class Connection(asyncio.Protocol):
    """What both sides of a connection share.

    Args:
        outbox: the process' one.
    """

    _transport: asyncio.Transport
    #: Settings of this side, besides the common ones.
    _own_settings: ClassVar[Mapping[int, int]] = {}

    def __init__(self, outbox: Outbox) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._codec = HeaderCodec()
        self._reader = FrameReader(self)
        self._out: list[bytes] = []
        self._lazy: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._fault: str | None = None
        self._send_window = DEFAULT_WINDOW
        self._received = 0
        self._peer_window = DEFAULT_WINDOW
        self._peer_max_frame = 16384
        self.peer_max_streams = MAX_WINDOW
        self.streams: dict[int, Stream] = {}
        self.draining = False
        self.settled: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self._frames: dict[type[Frame], Callable[[Any], None]] = {
            RstStreamFrame: self._reset_frame,
            SettingsFrame: self._settings_frame,
            GoAwayFrame: self._goaway_frame,
            PushPromiseFrame: self._push_frame,
        }

    # Implemented by the two sides.

    def _greet(self) -> None:
        """Send the preface, if this side has one."""

    def _unknown_stream(
        self, stream_id: int, headers: list[Header], refusal: Refusal | None, ended: bool
    ) -> None:
        """Handle headers of a stream that is not open; do not pass them on if refused."""
        raise NotImplementedError

    def _is_idle(self, stream_id: int) -> bool:
        """Whether the stream was never opened, so that only headers may arrive on it."""
        raise NotImplementedError

    def _told_to_leave(self, last_stream: int, reason: str) -> None:
        """Handle a GOAWAY: the peer takes no new streams."""

    def _more_headers(self, stream: Stream, headers: list[Header], ended: bool) -> None:
        """Handle headers of an open stream."""
        raise NotImplementedError

    def _remote_end(self, stream: Stream) -> None:
        """Handle the end of the peer's side of a stream."""
        stream.remote_ended()

    def half_closed(self, stream: Stream) -> None:
        """Handle that our side of a stream ended before the peer's."""

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our settings and open the window."""
        # uvloop's transports do not inherit asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._greet()
        settings: dict[int, int] = {
            SettingsFrame.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingsFrame.MAX_FRAME_SIZE: MAX_FRAME,
            SettingsFrame.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
            SettingsFrame.ENABLE_PUSH: 0,
            **self._own_settings,
        }
        self._write(SettingsFrame(0, settings=settings).serialize())
        self.write_window(0, CONNECTION_WINDOW - DEFAULT_WINDOW)

    def data_received(self, data: bytes) -> None:
        """Parse frames and answer them."""
        self._outbox.begin()
        try:
            self._reader.feed(data)
        except ConnectionFault as fault:
            self.abort(fault.code, str(fault))
        finally:
            self._outbox.end()

    def pause_writing(self) -> None:
        """Hold data frames back: the socket is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what was held back."""
        self._paused = False
        self._pump_all()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every open call that the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
        reason = self._fault or (str(exc) if exc else "connection closed")
        if not self.settled.done():
            self.settled.set_exception(ConnectionError(reason))
            self.settled.exception()
        if not self.closed.done():
            self.closed.set_result(reason)
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            sink, stream.sink = stream.sink, NOBODY
            stream.local_closed = stream.remote_closed = True
            sink.on_lost(reason)

    # Leaving.

    def abort(self, code: ErrorCode, reason: str) -> None:
        """Send GOAWAY with the reason, and close at once."""
        if self._fault is None and not self._transport.is_closing():
            self._fault = reason
            self._write(
                GoAwayFrame(
                    0,
                    last_stream_id=self._last_peer_stream(),
                    error_code=int(code),
                    additional_data=reason.encode()[:200],
                ).serialize()
            )
            self.flush()
            self._transport.close()

    def drain(self) -> None:
        """Send GOAWAY, take no new streams, and close when the open ones have ended."""
        if not self.draining:
            self.draining = True
            self._write(GoAwayFrame(0, last_stream_id=self._last_peer_stream()).serialize())
        self._close_if_idle()

    def _last_peer_stream(self) -> int:
        return 0

    def _close_if_idle(self) -> None:
        if self.draining and not self.streams:
            self.flush()
            self._transport.close()

    # Writing.

    def room(self) -> int:
        """Bytes that one data frame may carry now by the connection's limits."""
        return 0 if self._paused else min(self._send_window, self._peer_max_frame)

    def write_headers(self, stream: Stream, headers: Sequence[Header], ended: bool) -> None:
        """Pack and send a header list, in several frames when it is long."""
        block = self._codec.encode(headers)
        size = self._peer_max_frame
        kind, flags = HEADERS, END_STREAM if ended else 0
        for start in range(0, len(block) or 1, size):
            part = block[start : start + size]
            if start + size >= len(block):
                flags |= END_HEADERS
            self._write(frame_head(len(part), kind, flags, stream.id) + part)
            kind, flags = CONTINUATION, 0

    def write_data(self, stream: Stream, data: memoryview, ended: bool) -> None:
        """Send one data frame; the caller has checked the windows."""
        size = len(data)
        stream.send_window -= size
        self._send_window -= size
        self._write(frame_head(size, DATA, END_STREAM if ended else 0, stream.id))
        if size:
            self._write(bytes(data))

    def write_window(self, stream_id: int, size: int) -> None:
        """Allow the peer `size` more bytes."""
        self._write(frame_head(4, WINDOW_UPDATE, 0, stream_id) + size.to_bytes(4, "big"))

    def write_reset(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream."""
        self._write(RstStreamFrame(stream.id, error_code=int(code)).serialize())
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Drop a stream whose two sides have ended."""
        self.streams.pop(stream.id, None)
        # Stream and call refer to each other: break the cycle here, not in the garbage collector.
        stream.sink = NOBODY
        if self.draining:
            self._close_if_idle()

    def _write_lazily(self, data: bytes) -> None:
        """Send something that can wait, with the next bytes or a little later."""
        self._lazy.append(data)
        if self._timer is None:
            self._timer = self._loop.call_later(_LAZY_SECONDS, self.flush)

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._outbox.add(self)
        self._out.append(data)

    def flush(self) -> None:
        """Write the buffered bytes to the socket."""
        if self._lazy:
            self._out += self._lazy
            self._lazy.clear()
            if self._timer is not None:
                self._timer.cancel()
        self._timer = None
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            if not self._transport.is_closing():
                self._transport.write(data)

    def _pump_all(self) -> None:
        for stream in list(self.streams.values()):
            if stream.queued or stream.end_queued:
                stream.pump()

    # Reading.

    def frame_failed(self, stream_id: int) -> None:
        """Reset the call whose frame could not be handled."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.give_up(_FAILED)

    def frame_came(self, frame: Frame) -> None:
        """Handle a frame that has no method of its own."""
        handler = self._frames.get(type(frame))
        if handler is not None:
            handler(frame)

    def data_came(self, stream_id: int, payload: bytes, size: int, ended: bool) -> None:
        """Pass data to its call."""
        self._received += size
        if self._received >= CONNECTION_WINDOW // 4:
            self.write_window(0, self._received)
            self._received = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data on a stream never opened")
            return
        if stream.remote_closed:
            stream.give_up(_AFTER_THE_END)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            stream.give_up(_MORE_THAN_THE_WINDOW)
            return
        if size > len(payload):
            stream.consumed(size - len(payload))
        sink = stream.sink
        if ended:
            self._remote_end(stream)
        sink.on_data(payload, ended)

    def headers_came(self, stream_id: int, block: bytes, ended: bool) -> None:
        """Pass headers to their call, or start one."""
        headers, refusal = self._codec.decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._unknown_stream(stream_id, headers, refusal, ended)
            return
        if stream.remote_closed:
            stream.give_up(_AFTER_THE_END)
            return
        if refusal is not None:
            stream.give_up(refusal)
            return
        self._more_headers(stream, headers, ended)

    def ping_came(self, payload: bytes) -> None:
        """Answer a ping together with other frames.

        Go's servers measure the bandwidth with a ping for nearly every call; a write for each
        answer would cost a good part of what the proxy adds to a call.
        """
        self._write_lazily(frame_head(len(payload), PING, ACK, 0) + payload)

    def window_came(self, stream_id: int, size: int) -> None:
        """Send more: the peer's window has grown."""
        if stream_id == 0:
            self._send_window += size
            if self._send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")
            self._pump_all()
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.send_window += size
            if stream.send_window > MAX_WINDOW:
                stream.give_up(_WINDOW_OVERFLOW)
            else:
                stream.pump()
        elif self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window on a stream never opened")

    def _reset_frame(self, frame: RstStreamFrame) -> None:
        stream = self.streams.get(frame.stream_id)
        if stream is None:
            if self._is_idle(frame.stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "reset of a stream never opened")
            return
        stream.local_closed = stream.remote_closed = True
        sink = stream.sink
        self.forget(stream)
        sink.on_reset(frame.error_code, f"the call was reset (HTTP/2 code {frame.error_code})")

    def _settings_frame(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            return
        for key, value in frame.settings.items():
            if key == SettingsFrame.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
                for stream in self.streams.values():
                    stream.send_window += value - self._peer_window
                    if stream.send_window > MAX_WINDOW:
                        raise ConnectionFault(
                            ErrorCode.FLOW_CONTROL_ERROR, "stream window overflow"
                        )
                self._peer_window = value
            elif key == SettingsFrame.MAX_FRAME_SIZE:
                if not 16384 <= value < 1 << 24:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frame size {value}")
                self._peer_max_frame = value
            elif key == SettingsFrame.HEADER_TABLE_SIZE:
                self._codec.peer_table_size(value)
            elif key == SettingsFrame.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif key == SettingsFrame.ENABLE_PUSH and value not in (0, 1):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"push set to {value}")
        self._write(SettingsFrame(0, flags=["ACK"]).serialize())
        if not self.settled.done():
            self.settled.set_result(None)
        self._pump_all()

    def _goaway_frame(self, frame: GoAwayFrame) -> None:
        said = bytes(frame.additional_data).decode(errors="replace")
        self._told_to_leave(frame.last_stream_id, said or f"error code {frame.error_code}")

    def _push_frame(self, frame: PushPromiseFrame) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, though push is off")
