"""Sessions over WebSocket.

Exec and attach: channels 0 to 4 are stdin, stdout, stderr, error, resize.

The old port-forward: two channels for each port of the URL, one connection each. Channel 2i carries
the data of port i, 2i+1 its errors; both start with the port as two bytes, lowest first. Neither
side can end a channel alone, so the session ends when all ports have.
Source: kubelet/pkg/cri/streaming/portforward/websocket.go of Kubernetes.
"""

import asyncio
import struct

from virtlet.streaming.command_sessions import Resizes, Status
from virtlet.streaming.handlers import (
    AttachRequest,
    ExecRequest,
    InputStream,
    ProtocolError,
    SessionEnded,
    SessionStreams,
    StreamClosed,
)
from virtlet.streaming.lifetime import Activity, Lifetime, SessionLimits, cancel
from virtlet.streaming.port_forward import Forwarder
from virtlet.streaming.websocket import ChannelOutput, ChannelSocket, WebSocket
from virtlet.streaming.wire import Inbox

# Newest first; "" is a client that names none.
COMMAND_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
)
_RESIZE_BYTES = 16 * 1024
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)

# Newest first; "" is a client that names none.
FORWARD_PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
_PORT = struct.Struct("<H")


class _Stdin:
    """The client's stdin; torn down, it has ended."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def read(self, limit: int = 65536) -> bytes:
        try:
            return await self._inbox.read(limit)
        except StreamClosed:
            return b""


class WebSocketCommand:
    """A session's streams on a WebSocket."""

    def __init__(
        self,
        socket: WebSocket,
        request: ExecRequest | AttachRequest,
        protocol: str,
        limits: SessionLimits,
        activity: Activity,
    ) -> None:
        self._socket = socket
        self._as_json = protocol.startswith(("v4.", "v5."))
        self._inboxes: dict[int, Inbox] = {}
        if request.stdin:
            self._inboxes[_STDIN] = Inbox(lambda: limits.receive_buffer)
        if request.tty:
            self._inboxes[_RESIZE] = Inbox(lambda: _RESIZE_BYTES)
        self._sockets = ChannelSocket(
            socket,
            _RESIZE + 1,
            self._inboxes,
            activity,
            base64_text="base64" in protocol,
            closable=protocol.startswith("v5."),
        )
        self._stdout = ChannelOutput(self._sockets, _STDOUT) if request.stdout else None
        self._stderr = ChannelOutput(self._sockets, _STDERR) if request.stderr else None

    async def run(self) -> None:
        """Read from the client until it hangs up."""
        await self._sockets.run()

    async def open(self) -> SessionStreams:
        """Tell the client that the session is there, and return its streams."""
        first = self._stdout or self._stderr or ChannelOutput(self._sockets, _ERROR)
        await first.write(b"")
        return SessionStreams(
            self._input(_STDIN), self._stdout, self._stderr, Resizes(self._input(_RESIZE))
        )

    def _input(self, channel: int) -> InputStream | None:
        inbox = self._inboxes.get(channel)
        return _Stdin(inbox) if inbox else None

    async def finish(self, status: Status, *, client_fault: bool = False) -> None:
        """Tell the client the result and take leave."""
        for inbox in self._inboxes.values():
            inbox.discard()
        await self._sockets.send(_ERROR, status.encode(as_json=self._as_json))
        await self._socket.close(client_fault=client_fault)


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
