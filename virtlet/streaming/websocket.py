"""WebSocket as Kubernetes uses it: channels in messages, and SPDY tunnelled in messages.

The framing is wsproto's. In the channel protocols each message starts with the number of its
channel; in their base64 variants a message is text: the channel as a digit, then its data in
base64. Source: apimachinery/pkg/util/httpstream/wsstream of Kubernetes; the close channel of v5 is
KEP-4006.
"""

import base64
import binascii
from collections import deque
from collections.abc import Mapping

from attrs import frozen
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from virtlet.streaming.handlers import ProtocolError, StreamClosed
from virtlet.streaming.lifetime import Activity
from virtlet.streaming.wire import Inbox, Wire, wait_for_room

CLOSE_CHANNEL = 255
# Long data goes out in messages of this size, so that other channels get their turn between.
MESSAGE_BYTES = 64 * 1024
# A base64 message cannot be passed on in parts of any size, so it has to fit into memory.
MAX_BASE64_BYTES = 1024 * 1024


@frozen
class Fragment:
    """A message, or a part of one: long messages are passed on as they come."""

    data: bytes
    starts: bool
    ends: bool


class WebSocket:
    """The server's side of a WebSocket after its handshake."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._protocol = Connection(ConnectionType.SERVER)
        self._ready: deque[Fragment] = deque()
        self._between_messages = True
        self._closed_by_client = False

    async def receive(self) -> Fragment | None:
        """Return the next part of a message, text as UTF-8; None when the client closed.

        Raises:
            ProtocolError: what came is no WebSocket frame of a client.
            OSError: the connection broke.
        """
        while not self._ready and not self._closed_by_client:
            piece = await self._wire.read()
            if not piece:
                return None
            self._protocol.receive_data(piece)
            for event in self._protocol.events():
                await self._handle(event)
        return self._ready.popleft() if self._ready else None

    async def _handle(self, event: Event) -> None:
        match event:
            case TextMessage(data=text, message_finished=ends):
                self._add(text.encode(), ends)
            case BytesMessage(data=octets, message_finished=ends):
                self._add(bytes(octets), ends)
            case Ping():
                await self._send(event.response())
            case CloseConnection(reason=reason):
                if self._protocol.state is ConnectionState.OPEN:
                    # So wsproto reports what it cannot read; a close frame changes the state.
                    raise ProtocolError(f"not a WebSocket frame of a client: {reason}")
                self._closed_by_client = True
                if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                    await self._send(event.response())

    def _add(self, data: bytes, ends: bool) -> None:
        self._ready.append(Fragment(data, self._between_messages, ends))
        self._between_messages = ends

    async def send(self, data: bytes | str) -> None:
        """Send one message; returns when there is room for more.

        Raises:
            StreamClosed: the client is gone, or either side closed the WebSocket.
        """
        if isinstance(data, str):
            await self._send(TextMessage(data=data))
        else:
            await self._send(BytesMessage(data=data))

    def probe(self) -> None:
        """See whether the client is there, and tell it that we are: its pings wait unread.

        kubectl gives a WebSocket up that has not answered for a minute.

        Raises:
            OSError: the client is gone.
        """
        if self._protocol.state is ConnectionState.OPEN:
            self._wire.probe(self._protocol.send(Pong()))

    async def close(self, *, client_fault: bool = False) -> None:
        """Start the closing handshake; nothing can be sent afterwards."""
        if self._protocol.state is ConnectionState.OPEN:
            code = CloseReason.PROTOCOL_ERROR if client_fault else CloseReason.NORMAL_CLOSURE
            await self._send(CloseConnection(code=code))

    async def _send(self, event: Event) -> None:
        try:
            octets = self._protocol.send(event)
        except LocalProtocolError:
            raise StreamClosed("the WebSocket is closed") from None
        try:
            await self._wire.write(octets)
        except ConnectionError as error:
            raise StreamClosed(f"the client's connection ended: {error}") from error


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


class ChannelSocket:
    """Messages in, channels out.

    Args:
        channels: how many there are.
        inboxes: where the data of each readable channel goes; what comes on another is dropped,
            as the kubelet does.
        base64_text: whether messages are base64 text.
        closable: whether message 255 N ends channel N (v5).
    """

    def __init__(
        self,
        socket: WebSocket,
        channels: int,
        inboxes: Mapping[int, Inbox],
        activity: Activity,
        *,
        base64_text: bool,
        closable: bool,
    ) -> None:
        self._socket = socket
        self._channels = channels
        self._inboxes = inboxes
        self._activity = activity
        self._base64_text = base64_text
        self._closable = closable
        self._channel: int | None = None
        self._text = bytearray()

    async def run(self) -> None:
        """Read and pass on messages until the client closes.

        Raises:
            ProtocolError: the client broke the protocol.
            OSError: the connection broke.
        """
        try:
            while (fragment := await self._socket.receive()) is not None:
                if self._base64_text:
                    await self._base64(fragment)
                else:
                    await self._binary(fragment)
        finally:
            for inbox in self._inboxes.values():
                inbox.fail(StreamClosed("the client's connection ended"))

    async def _binary(self, fragment: Fragment) -> None:
        data = fragment.data
        if fragment.starts:
            self._channel = None
        if self._channel is None and data:
            self._channel, data = data[0], data[1:]
        if self._channel is not None and data:
            await self._deliver(self._channel, data)

    async def _base64(self, fragment: Fragment) -> None:
        if fragment.starts:
            self._text.clear()
        self._text += fragment.data
        if len(self._text) > MAX_BASE64_BYTES:
            raise ProtocolError(f"a base64 message of more than {MAX_BASE64_BYTES} bytes")
        if fragment.ends and self._text:
            try:
                data = base64.b64decode(self._text[1:], validate=True)
            except binascii.Error:
                raise ProtocolError("a message that is not base64") from None
            await self._deliver(self._text[0] - ord("0"), data)

    async def _deliver(self, channel: int, data: bytes) -> None:
        if channel == CLOSE_CHANNEL and self._closable:
            for number in data:
                if inbox := self._inboxes.get(number):
                    inbox.end()
            return
        if not 0 <= channel < self._channels:
            raise ProtocolError(f"a message for channel {channel} of {self._channels}")
        self._activity.touch()
        if (inbox := self._inboxes.get(channel)) and not inbox.ended:
            if inbox.full:
                await wait_for_room(inbox, self._socket)
            inbox.put(data)

    async def send(self, channel: int, data: bytes) -> None:
        """Send data on a channel; returns when there is room for more.

        Raises:
            StreamClosed: the client is gone.
        """
        self._activity.touch()
        # One message at least: an empty one tells the client that the channel is there.
        for start in range(0, max(1, len(data)), MESSAGE_BYTES):
            part = data[start : start + MESSAGE_BYTES]
            if self._base64_text:
                digit = chr(ord("0") + channel)
                await self._socket.send(digit + base64.b64encode(part).decode())
            else:
                await self._socket.send(bytes([channel]) + part)


class ChannelOutput:
    """The writable side of a channel."""

    def __init__(self, sockets: ChannelSocket, channel: int) -> None:
        self._sockets = sockets
        self._channel = channel
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Send data; returns when there is room for more.

        Raises:
            StreamClosed: the client is gone, or the channel was closed.
        """
        if self._closed:
            raise StreamClosed("the stream was closed before")
        await self._sockets.send(self._channel, data)

    async def close(self) -> None:
        """Send no more; the protocol tells the client only at the end of the session."""
        self._closed = True
