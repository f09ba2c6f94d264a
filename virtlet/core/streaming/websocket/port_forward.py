"""The old port-forward over WebSocket: two channels for each port of the URL, one connection each.

Channel 2i carries the data of port i, 2i+1 its errors; both start with the port as two bytes,
lowest first. Neither side can end a channel alone, so the session ends when all ports have.
Source: kubelet/pkg/cri/streaming/portforward/websocket.go of Kubernetes.
"""

import asyncio
import struct

from virtlet.core.streaming.errors import ProtocolError, SessionEnded
from virtlet.core.streaming.inbox import Inbox
from virtlet.core.streaming.lifetime import Lifetime
from virtlet.core.streaming.port_forward import Forwarder
from virtlet.core.streaming.tasks import cancel
from virtlet.core.streaming.websocket.channels import ChannelOutput, ChannelSocket
from virtlet.core.streaming.websocket.socket import WebSocket

# Newest first; "" is a client that names none.
PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
_PORT = struct.Struct("<H")


class _Data(ChannelOutput):
    """The data channel of a port."""

    def __init__(self, sockets: ChannelSocket, channel: int, inbox: Inbox) -> None:
        super().__init__(sockets, channel)
        self._inbox = inbox

    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes."""
        return await self._inbox.read(limit)

    async def abort(self) -> None:
        """End the channel: the protocol knows no other way."""
        await self.close()

    async def torn(self) -> None:
        """Return never: a channel breaks only with the whole session."""
        await asyncio.get_running_loop().create_future()


class WebSocketPortForward:
    """Has each port of the request forwarded once."""

    def __init__(
        self, socket: WebSocket, forwarder: Forwarder, protocol: str, lifetime: Lifetime
    ) -> None:
        self._socket = socket
        self._forwarder = forwarder
        self._lifetime = lifetime
        ports = forwarder.request.ports
        share = lifetime.limits.receive_buffer // max(1, len(ports))
        self._inboxes = {2 * index: Inbox(lambda: share) for index in range(len(ports))}
        self._sockets = ChannelSocket(
            socket,
            2 * len(ports),
            self._inboxes,
            lifetime.activity,
            base64_text="base64" in protocol,
            closable=False,
        )

    async def serve(self) -> None:
        """Serve the client until it hangs up or every port is done."""
        await self._lifetime.spend(self._sockets.run(), self._forward(), leave=self._leave)

    async def _leave(self, ended: SessionEnded) -> None:
        await self._socket.close(client_fault=isinstance(ended, ProtocolError))

    async def _forward(self) -> None:
        ports = enumerate(self._forwarder.request.ports)
        tasks = [asyncio.ensure_future(self._forward_port(2 * i, port)) for i, port in ports]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel(*tasks)
        await self._socket.close()
        await asyncio.sleep(self._lifetime.limits.linger_seconds)

    async def _forward_port(self, channel: int, port: int) -> None:
        inbox = self._inboxes[channel]
        data = _Data(self._sockets, channel, inbox)
        error = ChannelOutput(self._sockets, channel + 1)
        for output in (data, error):
            await output.write(_PORT.pack(port))
        await self._forwarder.forward(port, data, error)
        inbox.discard()
