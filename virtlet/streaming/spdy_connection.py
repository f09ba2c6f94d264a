"""The server's side of one SPDY connection: frames in, streams out."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from virtlet.streaming.handlers import ProtocolError, StreamClosed
from virtlet.streaming.lifetime import Activity, SessionLimits
from virtlet.streaming.spdy_frames import (
    DataFrame,
    Frame,
    FrameDecoder,
    FrameEncoder,
    GoAway,
    GoAwayStatus,
    Headers,
    Ping,
    ResetStatus,
    RstStream,
    SettingsFrame,
    SynReply,
    SynStream,
)
from virtlet.streaming.wire import Inbox, Wire, wait_for_room

# Long data goes out in frames of this size, so that other streams get their turn between.
FRAME_BYTES = 128 * 1024

_LEAST_SHARE = 16 * 1024
_ALONE_FACTOR = 10


class SpdyStream:
    """A stream that the client opened: bytes both ways, each way ending on its own.

    Args:
        stream_id: the client's number for it.
        headers: what the client said about it; names in lower case.
        inbox: where the connection puts what the client sends.
        send: puts one frame on the connection.
        closed: told when both ways have ended, or the stream was reset.
    """

    def __init__(
        self,
        stream_id: int,
        headers: Mapping[str, str],
        inbox: Inbox,
        send: Callable[[Frame], Awaitable[None]],
        closed: Callable[["SpdyStream"], None],
    ) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.inbox = inbox
        self._send = send
        self._closed = closed
        self._finished = False
        self._reset: StreamClosed | None = None
        self._torn = asyncio.Event()

    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes, or b"" once the client has finished its way.

        Raises:
            StreamClosed: the stream or the connection broke.
        """
        return await self.inbox.read(limit)

    async def write(self, data: bytes) -> None:
        """Send data; returns when there is room for more.

        Raises:
            StreamClosed: the stream or the connection broke.
        """
        for start in range(0, len(data), FRAME_BYTES):
            if self._reset:
                raise self._reset
            if self._finished:
                raise StreamClosed("the stream was closed before")
            part = data if len(data) <= FRAME_BYTES else data[start : start + FRAME_BYTES]
            await self._send(DataFrame(self.stream_id, part))

    async def close(self) -> None:
        """End our way of the stream; the client may go on sending."""
        if self._finished or self._reset:
            return
        self._finished = True
        if self.inbox.ended:
            self._closed(self)
        await self._send(DataFrame(self.stream_id, b"", fin=True))

    async def abort(self) -> None:
        """Tear the stream down because its other side broke."""
        await self.reset(ResetStatus.CANCEL)

    async def reset(self, status: ResetStatus) -> None:
        """Tear the stream down in both directions."""
        if self._reset:
            return
        self.broken("the server reset the stream")
        await self._send(RstStream(self.stream_id, status))

    def broken(self, reason: str) -> None:
        """The stream is gone in both directions: wake whoever waits for it."""
        self._reset = StreamClosed(reason)
        self._torn.set()
        self.inbox.fail(self._reset)
        self._closed(self)

    async def torn(self) -> None:
        """Return once the stream was torn down, by either side."""
        await self._torn.wait()

    def client_finished(self) -> None:
        """The client ended its way."""
        self.inbox.end()
        if self._finished:
            self._closed(self)


class StreamRefused(Exception):
    """The session has no use for a stream that the client opens."""


class SpdyConnection:
    """Serves the streams that a client opens; the server opens none.

    Args:
        accept: takes each new stream before it is answered; raises StreamRefused to reset it.
            It must not wait.
        patience: seconds after which a stream whose handler reads nothing is reset, so that
            the others go on; None where there are no others to think of.
    """

    def __init__(
        self,
        wire: Wire,
        accept: Callable[[SpdyStream], None],
        limits: SessionLimits,
        activity: Activity,
        patience: float | None = None,
    ) -> None:
        self._wire = wire
        self._accept = accept
        self._limits = limits
        self._activity = activity
        self._patience = patience
        self._decoder = FrameDecoder()
        self._encoder = FrameEncoder()
        self._streams: dict[int, SpdyStream] = {}
        self._last_id = 0
        self._leaving = False

    async def run(self) -> None:
        """Read and serve frames until the client hangs up.

        Raises:
            ProtocolError: the client broke the protocol.
            OSError: the connection broke.
        """
        try:
            while piece := await self._wire.read():
                for frame in self._decoder.feed(piece):
                    await self._handle(frame)
        finally:
            # Only what is read ends here: a client that broke the protocol is still told so.
            for stream in self._streams.values():
                stream.inbox.fail(StreamClosed("the client's connection ended"))

    async def go_away(self, *, client_fault: bool = False) -> None:
        """Tell the client that no new stream will be served."""
        self._leaving = True
        status = GoAwayStatus.PROTOCOL_ERROR if client_fault else GoAwayStatus.OK
        await self._send(GoAway(self._last_id, status))

    def probe(self) -> None:
        """See whether the client is there while its data waits; raises OSError if not.

        An empty SETTINGS frame means nothing to any client. A PING will not do: Go's client
        answers it in the order of its data, and takes no more from us until it could.
        """
        self._wire.probe(self._encoder.encode(SettingsFrame({})))

    async def _send(self, frame: Frame) -> None:
        # Nothing may wait between encoding and handing over: header blocks share one history,
        # and a frame cut in two would end the connection.
        if isinstance(frame, DataFrame):
            self._activity.touch()
        try:
            await self._wire.write(self._encoder.encode(frame))
        except ConnectionError as error:
            raise StreamClosed(f"the client's connection ended: {error}") from error

    async def _handle(self, frame: Frame) -> None:
        match frame:
            case DataFrame():
                await self._data(frame)
            case SynStream():
                await self._open(frame)
            case RstStream(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.broken("the client reset the stream")
            case Ping(ping_id) if ping_id % 2:
                await self._send(Ping(ping_id))
            case Headers(stream_id, _, True):
                if stream := self._streams.get(stream_id):
                    stream.client_finished()
            case _:
                # SETTINGS and WINDOW_UPDATE change nothing here (see spdy_frames.py), GOAWAY is
                # about streams that we would open, an even PING answers one of ours: none.
                pass

    async def _open(self, frame: SynStream) -> None:
        self._activity.touch()
        if self._leaving:
            return
        stream_id = frame.stream_id
        if stream_id % 2 == 0 or stream_id <= self._last_id:
            raise ProtocolError(
                f"stream {stream_id} opened after {self._last_id}; a client's streams have "
                "odd and growing numbers"
            )
        self._last_id = stream_id
        if len(self._streams) >= self._limits.max_streams:
            await self._send(RstStream(stream_id, ResetStatus.REFUSED_STREAM))
            return
        inbox = Inbox(self._share)
        stream = SpdyStream(stream_id, frame.headers, inbox, self._send, self._forget)
        self._streams[stream_id] = stream
        if frame.fin:
            stream.client_finished()
        # The answer comes before anything that the session sends on the stream: Go's client
        # drops data on a stream that was not answered.
        try:
            self._accept(stream)
        except StreamRefused:
            await stream.reset(ResetStatus.REFUSED_STREAM)
            return
        await self._send(SynReply(stream_id))

    def _share(self) -> int:
        """Return how much of the buffer a stream may fill; mostly they come in pairs."""
        pairs = (len(self._streams) + 1) // 2
        return max(_LEAST_SHARE, self._limits.receive_buffer // max(1, pairs))

    def _time_for(self) -> float | None:
        """Return how long a stream whose handler reads nothing may hold up the connection."""
        if self._patience is None:
            return None
        # Others may wait behind its data, yet to be opened: it gets long, but not for ever.
        alone = len(self._streams) <= 2
        return self._patience * (_ALONE_FACTOR if alone else 1)

    def _forget(self, stream: SpdyStream) -> None:
        self._streams.pop(stream.stream_id, None)

    async def _data(self, frame: DataFrame) -> None:
        self._activity.touch()
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            # What was on its way when a stream closed is normal, a stream never opened is not.
            if frame.stream_id > self._last_id or frame.stream_id % 2 == 0:
                raise ProtocolError(f"data on stream {frame.stream_id}, which was never opened")
            return
        if stream.inbox.ended:
            if frame.data:
                await stream.reset(ResetStatus.STREAM_ALREADY_CLOSED)
            return
        if stream.inbox.full and not await wait_for_room(stream.inbox, self, self._time_for()):
            await stream.reset(ResetStatus.FLOW_CONTROL_ERROR)
            return
        stream.inbox.put(frame.data)
        if frame.fin:
            stream.client_finished()
