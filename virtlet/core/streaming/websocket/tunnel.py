"""A byte stream inside WebSocket messages: how kubectl's port-forward carries SPDY."""

from virtlet.core.streaming.websocket.socket import WebSocket


class TunnelWire:
    """A `Wire` whose bytes travel as binary messages; message borders mean nothing."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        """Return the next bytes, b"" when the client has finished."""
        while (fragment := await self._socket.receive()) is not None:
            if fragment.data:
                return fragment.data
        return b""

    async def write(self, data: bytes) -> None:
        """Send data; returns when there is room for more."""
        await self._socket.send(data)

    def probe(self, nothing: bytes) -> None:
        """See whether the client is there; the WebSocket has a nothing of its own."""
        self._socket.probe()

    async def close(self) -> None:
        """Close the WebSocket; its own wire stays open for the client's answer."""
        await self._socket.close()
