"""From an accepted connection to its session: request, token, upgrade, session."""

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus

from attrs import frozen

from virtlet.streaming.command import Job, attach_job, exec_job, serve_command
from virtlet.streaming.handshake import (
    HttpConnection,
    HttpError,
    Request,
    negotiate,
    websocket_headers,
)
from virtlet.streaming.lifetime import Activity, Lifetime
from virtlet.streaming.limits import Limits
from virtlet.streaming.port_forward import Forwarder
from virtlet.streaming.sessions import (
    AttachRequest,
    ExecRequest,
    Handlers,
    PortForwardRequest,
)
from virtlet.streaming.spdy_sessions import COMMAND_PROTOCOLS as SPDY_COMMANDS
from virtlet.streaming.spdy_sessions import FORWARD_PROTOCOLS as SPDY_FORWARDS
from virtlet.streaming.spdy_sessions import SpdyCommand, SpdyPortForward
from virtlet.streaming.tokens import TokenStore
from virtlet.streaming.websocket import TunnelWire, WebSocket
from virtlet.streaming.websocket_sessions import COMMAND_PROTOCOLS as WEBSOCKET_COMMANDS
from virtlet.streaming.websocket_sessions import FORWARD_PROTOCOLS as WEBSOCKET_FORWARDS
from virtlet.streaming.websocket_sessions import WebSocketCommand, WebSocketPortForward
from virtlet.streaming.wire import TcpWire

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
    limits: Limits
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
