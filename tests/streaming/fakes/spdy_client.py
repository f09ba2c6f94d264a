"""A SPDY client for the tests: opens streams, keeps what each receives."""

import asyncio
import ssl
from types import TracebackType
from typing import cast
from urllib.parse import urlsplit

from virtlet.streaming.spdy_frames import (
    DataFrame,
    Frame,
    FrameDecoder,
    FrameEncoder,
    GoAway,
    Ping,
    RstStream,
    SynReply,
    SynStream,
)


class Refused(Exception):
    """The server did not upgrade; holds its status and text."""


async def upgrade(
    url: str,
    headers: dict[str, str],
    method: str = "POST",
    tls: ssl.SSLContext | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *rest = head.splitlines()
    if " 101 " not in status:
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        raise Refused(f"{status.split(' ', 1)[1]}: {text}")
    answer = {}
    for line in rest:
        name, _, value = line.partition(": ")
        answer[name.lower()] = value
    return reader, writer, answer


class ClientStream:
    """What one stream received so far."""

    def __init__(self, client: "SpdyClient", stream_id: int) -> None:
        self.client = client
        self.stream_id = stream_id
        self.received = bytearray()
        self.replied = asyncio.Event()
        self.ended = asyncio.Event()
        self.reset_status = 0
        self.changed = asyncio.Condition()

    async def send(self, data: bytes, *, fin: bool = False) -> None:
        await self.client.send(DataFrame(self.stream_id, data, fin))

    async def close(self) -> None:
        await self.send(b"", fin=True)

    async def reset(self) -> None:
        await self.client.send(RstStream(self.stream_id, 5))

    async def read_all(self) -> bytes:
        await self.ended.wait()
        return bytes(self.received)

    async def read_until(self, text: bytes) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: text in self.received or self.ended.is_set())
        return bytes(self.received)


class SpdyClient:
    """One connection; `async with` closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.streams: dict[int, ClientStream] = {}
        self.pings: list[int] = []
        self.gone_away: int | None = None
        self.closed = asyncio.Event()
        self._next_id = 1
        self._encoder = FrameEncoder()
        self._task = asyncio.ensure_future(self._run())

    @classmethod
    async def connect(
        cls, url: str, *protocols: str, tls: ssl.SSLContext | None = None
    ) -> "SpdyClient":
        headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "Content-Length": "0"}
        if protocols:
            headers["X-Stream-Protocol-Version"] = ", ".join(protocols)
        reader, writer, answer = await upgrade(url, headers, tls=tls)
        client = cls(reader, writer)
        client.protocol = answer.get("x-stream-protocol-version", "")
        return client

    protocol = ""

    async def __aenter__(self) -> "SpdyClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.writer.transport.abort()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def send(self, frame: Frame) -> None:
        self.writer.write(self._encoder.encode(frame))
        await self.writer.drain()

    def send_later(self, frame: Frame) -> None:
        """Queue a frame without waiting until the network takes it."""
        self.writer.write(self._encoder.encode(frame))

    def pause(self) -> None:
        """Read nothing until `resume`."""
        # uvloop's transports are none of asyncio's classes.
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def resume(self) -> None:
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    async def open(self, kind: str, **headers: str) -> ClientStream:
        stream = ClientStream(self, self._next_id)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        await self.send(SynStream(stream.stream_id, {"streamType": kind, **headers}))
        return stream

    async def _run(self) -> None:
        decoder = FrameDecoder()
        try:
            while piece := await self.reader.read(262144):
                for frame in decoder.feed(piece):
                    await self._handle(frame)
        except OSError:
            pass
        finally:
            self.closed.set()
            for stream in self.streams.values():
                await self._end(stream)

    async def _handle(self, frame: Frame) -> None:
        match frame:
            case SynReply(stream_id):
                self.streams[stream_id].replied.set()
            case DataFrame(stream_id, data, fin):
                stream = self.streams[stream_id]
                assert stream.replied.is_set(), "Go's client drops data before the reply"
                stream.received += data
                async with stream.changed:
                    stream.changed.notify_all()
                if fin:
                    await self._end(stream)
            case RstStream(stream_id, status):
                self.streams[stream_id].reset_status = status
                await self._end(self.streams[stream_id])
            case Ping(ping_id):
                self.pings.append(ping_id)
            case GoAway(_, status):
                self.gone_away = status

    async def _end(self, stream: ClientStream) -> None:
        stream.ended.set()
        async with stream.changed:
            stream.changed.notify_all()
