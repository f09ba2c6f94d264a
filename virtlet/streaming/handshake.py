"""The HTTP/1.1 part of a connection: one request, then an upgrade or a refusal; h11 parses."""

from collections.abc import Sequence
from http import HTTPStatus

import h11
from attrs import frozen
from wsproto.utilities import generate_accept_token

from virtlet.streaming.wire import TcpWire

_MAX_HEAD = 32 * 1024


class HttpError(Exception):
    """The request is refused.

    Args:
        message: what is wrong and what to do; the client shows it.
        headers: to send beside it.
    """

    def __init__(
        self, status: HTTPStatus, message: str, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@frozen
class Request:
    """A request without a body."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """Return the comma-separated values of all headers of this (lower-case) name."""
        return [
            value
            for header, values in self.headers
            if header == name
            for value in (part.strip() for part in values.split(","))
            if value
        ]

    def upgrades_to(self, protocol: str) -> bool:
        """Whether the client asks to go on in this protocol."""
        return "upgrade" in map(str.lower, self.values("connection")) and protocol in map(
            str.lower, self.values("upgrade")
        )


class HttpConnection:
    """Reads the one request of a connection and answers it."""

    def __init__(self, wire: TcpWire) -> None:
        self._wire = wire
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def request(self) -> Request | None:
        """Return the request; None when the client hung up before it was whole.

        What came after it stays on the wire, for the protocol that is spoken next.

        Raises:
            HttpError: what came is no HTTP request, or one with a body.
        """
        head = None
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._wire.read())
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    raise HttpError(HTTPStatus.BAD_REQUEST, "send no body with this request")
                elif isinstance(event, h11.ConnectionClosed):
                    return None
                else:  # the end of the request, or h11 waiting for our answer to it
                    break
        except h11.RemoteProtocolError as error:
            raise HttpError(HTTPStatus(error.error_status_hint), f"bad request: {error}") from None
        assert head is not None, "h11 ends no request that it did not begin"
        self._wire.unread(self._http.trailing_data[0])
        return Request(
            head.method.decode(),
            head.target.decode("latin-1"),
            tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers),
        )

    async def upgrade(self, protocol: str, headers: Sequence[tuple[str, str]]) -> None:
        """Answer 101: from here on both sides speak the other protocol."""
        response = h11.InformationalResponse(
            status_code=HTTPStatus.SWITCHING_PROTOCOLS,
            headers=[("Connection", "Upgrade"), ("Upgrade", protocol), *headers],
        )
        await self._wire.write(self._http.send(response) or b"")

    async def refuse(self, error: HttpError) -> None:
        """Answer with the error; the connection is then to be closed."""
        body = f"{error}\n".encode()
        head = h11.Response(
            status_code=error.status,
            reason=error.status.phrase,
            headers=[
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *error.headers,
            ],
        )
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        await self._wire.write(b"".join(self._http.send(event) or b"" for event in events))


def negotiate(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """Return the first of the client's protocols that we support; None for no match.

    A client that offers none gets "" where that is supported.
    """
    return next((name for name in offered or [""] if name in supported), None)


def websocket_headers(request: Request, protocol: str) -> tuple[tuple[str, str], ...]:
    """Return the headers that complete a WebSocket handshake.

    Raises:
        HttpError: the request is none of WebSocket version 13.
    """
    keys = request.values("sec-websocket-key")
    if request.method != "GET" or len(keys) != 1:
        raise HttpError(
            HTTPStatus.BAD_REQUEST, "a WebSocket starts with GET and one Sec-WebSocket-Key"
        )
    if request.values("sec-websocket-version") != ["13"]:
        raise HttpError(
            HTTPStatus.UPGRADE_REQUIRED,
            "this server speaks WebSocket version 13",
            [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")],
        )
    accept = ("Sec-WebSocket-Accept", generate_accept_token(keys[0].encode()).decode())
    return (accept, ("Sec-WebSocket-Protocol", protocol)) if protocol else (accept,)
