"""One stream of a SPDY connection."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from virtlet.core.streaming.errors import StreamClosed
from virtlet.core.streaming.inbox import Inbox
from virtlet.core.streaming.spdy.frames import Data, Frame, ResetStatus, RstStream

# Long data goes out in frames of this size, so that other streams get their turn between.
FRAME_BYTES = 128 * 1024


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
            await self._send(Data(self.stream_id, part))

    async def close(self) -> None:
        """End our way of the stream; the client may go on sending."""
        if self._finished or self._reset:
            return
        self._finished = True
        if self.inbox.ended:
            self._closed(self)
        await self._send(Data(self.stream_id, b"", fin=True))

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
