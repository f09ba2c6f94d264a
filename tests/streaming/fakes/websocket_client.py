"""A WebSocket client for the tests, speaking Kubernetes' channels."""

import asyncio
import base64
from collections import defaultdict

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from .spdy_client import upgrade


class WebSocketClient:
    """One connection; `async with` closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.protocol = ""
        self.channels: dict[int, bytearray] = defaultdict(bytearray)
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.ended = asyncio.Event()
        self.changed = asyncio.Condition()
        self._websocket = Connection(ConnectionType.CLIENT)
        self._task = asyncio.ensure_future(self._run())

    @classmethod
    async def connect(cls, url: str, *protocols: str) -> "WebSocketClient":
        headers = {
            "Connection": "keep-alive, Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        }
        if protocols:
            headers["Sec-WebSocket-Protocol"] = ", ".join(protocols)
        reader, writer, answer = await upgrade(url, headers, "GET")
        client = cls(reader, writer)
        client.protocol = answer.get("sec-websocket-protocol", "")
        return client

    async def __aenter__(self) -> "WebSocketClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.writer.transport.abort()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def send(self, channel: int, data: bytes) -> None:
        if "base64" in self.protocol:
            await self.event(TextMessage(data=f"{channel}{base64.b64encode(data).decode()}"))
        else:
            await self.event(BytesMessage(data=bytes([channel]) + data))

    async def close_channel(self, channel: int) -> None:
        await self.event(BytesMessage(data=bytes([255, channel])))

    async def event(self, event: Event) -> None:
        self.writer.write(self._websocket.send(event))
        await self.writer.drain()

    async def read_until(self, channel: int, text: bytes) -> bytes:
        async with self.changed:
            await self.changed.wait_for(
                lambda: text in self.channels[channel] or self.ended.is_set()
            )
        return bytes(self.channels[channel])

    async def _run(self) -> None:
        message = bytearray()
        try:
            while piece := await self.reader.read(262144):
                self._websocket.receive_data(piece)
                for event in self._websocket.events():
                    match event:
                        case BytesMessage(data=data, message_finished=done):
                            message += data
                            if done:
                                self.channels[message[0]] += message[1:]
                                message.clear()
                        case TextMessage(data=text, message_finished=done):
                            message += text.encode()
                            if done:
                                channel = message[0] - ord("0")
                                self.channels[channel] += base64.b64decode(message[1:])
                                message.clear()
                        case Pong(payload=payload):
                            self.pongs.append(bytes(payload))
                        case Ping():
                            await self.event(event.response())
                        case CloseConnection(code=code):
                            self.close_code = code
                            return
                async with self.changed:
                    self.changed.notify_all()
        except OSError:
            pass
        finally:
            self.ended.set()
            async with self.changed:
                self.changed.notify_all()
