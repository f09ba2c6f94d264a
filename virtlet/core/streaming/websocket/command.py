"""Exec and attach over WebSocket: channels 0 to 4 are stdin, stdout, stderr, error, resize."""

from virtlet.core.streaming.activity import Activity
from virtlet.core.streaming.errors import StreamClosed
from virtlet.core.streaming.inbox import Inbox
from virtlet.core.streaming.limits import Limits
from virtlet.core.streaming.resize import Resizes
from virtlet.core.streaming.sessions import (
    AttachRequest,
    ExecRequest,
    InputStream,
    SessionStreams,
)
from virtlet.core.streaming.status import Status
from virtlet.core.streaming.websocket.channels import ChannelOutput, ChannelSocket
from virtlet.core.streaming.websocket.socket import WebSocket

# Newest first; "" is a client that names none.
PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
)
_RESIZE_BYTES = 16 * 1024
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)


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
        limits: Limits,
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
