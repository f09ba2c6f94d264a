"""From an accepted connection to its session: HTTP request (by h11), token, upgrade, session."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus

import h11
from attrs import frozen
from wsproto.utilities import generate_accept_token

from virtlet.streaming.command_sessions import Job, attach_job, exec_job, serve_command
from virtlet.streaming.handlers import (
    AttachRequest,
    ExecRequest,
    Handlers,
    PortForwardRequest,
)
from virtlet.streaming.lifetime import Activity, Lifetime, SessionLimits, TokenStore
from virtlet.streaming.port_forward import Forwarder
from virtlet.streaming.spdy_sessions import COMMAND_PROTOCOLS as SPDY_COMMANDS
from virtlet.streaming.spdy_sessions import FORWARD_PROTOCOLS as SPDY_FORWARDS
from virtlet.streaming.spdy_sessions import SpdyCommand, SpdyPortForward
from virtlet.streaming.websocket import TunnelWire, WebSocket
from virtlet.streaming.websocket_sessions import COMMAND_PROTOCOLS as WEBSOCKET_COMMANDS
from virtlet.streaming.websocket_sessions import FORWARD_PROTOCOLS as WEBSOCKET_FORWARDS
from virtlet.streaming.websocket_sessions import WebSocketCommand, WebSocketPortForward
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


logger = logging.getLogger(__name__)

SessionRequest = ExecRequest | AttachRequest | PortForwardRequest
KINDS: dict[str, type[SessionRequest]] = {
    "exec": ExecRequest,
    "attach": AttachRequest,
    "portforward": PortForwardRequest,
}
"""The first part of a URL's path, and what its token stands for."""

_PATH = re.compile(r"/(exec|attach|portforward)/([A-Za-z0-9_-]{1,128})")
_SPDY = "SPDY/3.1"
_TUNNEL = _SPDY + "+"
_VERSION = "X-Stream-Protocol-Version"
_ACCEPTED = "X-Accepted-Stream-Protocol-Versions"


@frozen
class _Route:
    """How a connection is to be served; decided before its token is spent."""

    kind: str
    token: str
    websocket: bool
    protocol: str
    answer: tuple[tuple[str, str], ...]


@frozen
class Dispatcher:
    """Serves one connection after the other's accept; knows what a URL means.

    Args:
        stopping: set when the server stops.
        is_full: whether there are as many sessions as may be.
    """

    tokens: TokenStore[SessionRequest]
    handlers: Handlers
    limits: SessionLimits
    stopping: asyncio.Event
    is_full: Callable[[], bool]

    async def serve(self, wire: TcpWire, admit: Callable[[], None]) -> None:
        """Serve a connection to its end; the caller closes it.

        Args:
            wire: the connection.
            admit: called once it has shown its token.
        """
        http = HttpConnection(wire)
        try:
            async with asyncio.timeout(self.limits.head_seconds):
                request = await http.request()
            if request is None:
                return
            route = _route(request)
            if self.is_full():
                raise HttpError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self.limits.max_connections} streaming connections are open on this node; "
                    "close some or try again later",
                    [("Retry-After", "5")],
                )
            wanted = self.tokens.redeem(route.token, KINDS[route.kind])
            if wanted is None:
                raise HttpError(
                    HTTPStatus.NOT_FOUND,
                    f"this {route.kind} URL is unknown, was used before or is older than "
                    f"{self.limits.token_seconds:g} seconds; ask for a new one",
                )
            admit()
            await http.upgrade("websocket" if route.websocket else _SPDY, route.answer)
        except HttpError as error:
            logger.info("refused a streaming connection: %s", error)
            await http.refuse(error)
            return
        except TimeoutError:
            message = f"no whole request within {self.limits.head_seconds:g} seconds"
            await http.refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, message))
            return
        await self._session(wire, route, wanted)

    async def _session(self, wire: TcpWire, route: _Route, wanted: SessionRequest) -> None:
        name = _name(route, wanted)
        logger.info("%s starts", name)
        lifetime = Lifetime(name, Activity(), self.stopping, self.limits)
        match wanted:
            case ExecRequest():
                await self._command(
                    wire, route, wanted, exec_job(self.handlers.exec, wanted), lifetime
                )
            case AttachRequest():
                await self._command(
                    wire, route, wanted, attach_job(self.handlers.attach, wanted), lifetime
                )
            case PortForwardRequest():
                await self._port_forward(wire, route, wanted, lifetime)

    async def _command(
        self,
        wire: TcpWire,
        route: _Route,
        wanted: ExecRequest | AttachRequest,
        job: Job,
        lifetime: Lifetime,
    ) -> None:
        framing: SpdyCommand | WebSocketCommand
        if route.websocket:
            framing = WebSocketCommand(
                WebSocket(wire), wanted, route.protocol, self.limits, lifetime.activity
            )
        else:
            framing = SpdyCommand(wire, wanted, route.protocol, self.limits, lifetime.activity)
        await serve_command(framing, job, lifetime)

    async def _port_forward(
        self, wire: TcpWire, route: _Route, wanted: PortForwardRequest, lifetime: Lifetime
    ) -> None:
        forwarder = Forwarder(self.handlers.ports, wanted, self.limits)
        if not route.websocket:
            await SpdyPortForward(wire, forwarder, lifetime).serve()
        elif route.protocol.startswith(_TUNNEL):
            tunnel = TunnelWire(WebSocket(wire))
            await SpdyPortForward(tunnel, forwarder, lifetime).serve()
            await tunnel.close()
        else:
            session = WebSocketPortForward(WebSocket(wire), forwarder, route.protocol, lifetime)
            await session.serve()


def _name(route: _Route, wanted: SessionRequest) -> str:
    """Return what the log calls the session; never its command, which may hold secrets."""
    if isinstance(wanted, PortForwardRequest):
        whose = f"sandbox {wanted.sandbox_id}"
    else:
        whose = f"container {wanted.container_id}"
    carrier = "WebSocket" if route.websocket else "SPDY"
    return f"{route.kind} session of {whose} over {carrier}, {route.protocol or 'no version'},"


def _route(request: Request) -> _Route:
    """Return how to serve the request.

    Raises:
        HttpError: not by this server.
    """
    if request.method not in ("GET", "POST"):
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST", [("Allow", "GET, POST")])
    match = _PATH.fullmatch(request.path.partition("?")[0])
    if match is None:
        raise HttpError(HTTPStatus.NOT_FOUND, "nothing is served at this path")
    kind, token = match.groups()
    if request.upgrades_to("websocket"):
        supported = _websocket_protocols(kind)
        protocol = _agreed(
            negotiate(request.values("sec-websocket-protocol"), supported), supported
        )
        return _Route(kind, token, True, protocol, websocket_headers(request, protocol))
    if request.upgrades_to(_SPDY.lower()):
        supported = _spdy_protocols(kind)
        protocol = _agreed(negotiate(request.values(_VERSION.lower()), (*supported, "")), supported)
        answer = ((_VERSION, protocol),) if protocol else ()
        return _Route(kind, token, False, protocol, answer)
    raise HttpError(
        HTTPStatus.UPGRADE_REQUIRED,
        f"ask for an upgrade to {_SPDY} or websocket",
        [("Upgrade", f"{_SPDY}, websocket")],
    )


def _websocket_protocols(kind: str) -> tuple[str, ...]:
    if kind == "portforward":
        tunnelled = tuple(_TUNNEL + name for name in SPDY_FORWARDS)
        return (*tunnelled, *WEBSOCKET_FORWARDS)
    return WEBSOCKET_COMMANDS


def _spdy_protocols(kind: str) -> tuple[str, ...]:
    return SPDY_FORWARDS if kind == "portforward" else SPDY_COMMANDS


def _agreed(protocol: str | None, supported: tuple[str, ...]) -> str:
    if protocol is None:
        names = [name for name in supported if name]
        raise HttpError(
            HTTPStatus.FORBIDDEN,
            f"none of the offered protocols is served here; offer one of {', '.join(names)}",
            [(_ACCEPTED, name) for name in names],
        )
    return protocol
