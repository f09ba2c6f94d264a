"""WebSocket messages over a wire; the framing is wsproto's."""

from collections import deque

from attrs import frozen
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from virtlet.core.streaming.errors import ProtocolError, StreamClosed
from virtlet.core.streaming.wire import Wire


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
