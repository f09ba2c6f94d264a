"""The streaming server: gives out URLs, and serves whoever connects to one."""

import asyncio
import ipaddress
import logging
import socket
import ssl

from virtlet.errors import InvalidArgument, Unavailable
from virtlet.streaming.dispatch import Dispatcher, SessionRequest
from virtlet.streaming.handlers import (
    AttachRequest,
    ExecRequest,
    Handlers,
    PortForwardRequest,
)
from virtlet.streaming.lifetime import SessionLimits, TokenStore, cancel, first_of
from virtlet.streaming.wire import TcpWire
from virtlet.threads import BackOff

logger = logging.getLogger(__name__)

_BACKLOG = 128
_ACCEPT_PAUSES = (0.1, 1.0)
"""Seconds until the next try, where the node has no descriptor left: at first, and at most."""
_TCP_OPTIONS = {
    # A client whose host vanished without a word is noticed after 30 + 3 * 10 seconds, unless data
    # is on its way to it: see TcpWire.watch.
    socket.TCP_KEEPIDLE: 30,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
}


class StreamingServer:
    """Serves exec, attach and port-forward sessions over HTTP.

    `start` and `stop` belong to one event loop, on which the handlers run; URLs may be asked
    for from any thread while the server runs.

    Args:
        address: IP address to listen on.
        port: TCP port; 0 takes a free one.
        tls: serve HTTPS with this context; None serves HTTP.
        advertised_host: name or address for the URLs where the one listened on will not do. The
            default is the address, or the loopback address where that is a wildcard.

    Raises:
        InvalidArgument: the address is none.
    """

    def __init__(
        self,
        address: str,
        port: int,
        handlers: Handlers,
        *,
        tls: ssl.SSLContext | None = None,
        limits: SessionLimits | None = None,
        advertised_host: str | None = None,
    ) -> None:
        try:
            self._address = ipaddress.ip_address(address)
        except ValueError:
            raise InvalidArgument(f"streaming address {address!r} is no IP address") from None
        self._port = port
        self._tls = tls
        self._limits = limits or SessionLimits()
        self._host = advertised_host or _reachable(self._address)
        self._tokens: TokenStore[SessionRequest] = TokenStore(
            self._limits.token_seconds, self._limits.max_pending_tokens
        )
        self._stopping = asyncio.Event()
        self._dispatcher = Dispatcher(
            self._tokens, handlers, self._limits, self._stopping, self._is_full
        )
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Those that have shown no token yet, the oldest first."""
        self._sessions: set[asyncio.Task[None]] = set()
        """Those that have."""

    @property
    def port(self) -> int:
        """The port listened on.

        Raises:
            Unavailable: the server does not run.
        """
        if self._listener is None:
            raise Unavailable("the streaming server does not run; try again once it does")
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def sessions(self) -> int:
        """How many connections are being served, with or without a session yet."""
        return len(self._connections)

    def _is_full(self) -> bool:
        return len(self._sessions) >= self._limits.max_connections

    def exec_url(self, request: ExecRequest) -> str:
        """Return the URL of a new exec session: for one connection, for a minute.

        Raises:
            ResourceExhausted: too many URLs wait to be used.
            Unavailable: the server does not run.
        """
        return self._url("exec", request)

    def attach_url(self, request: AttachRequest) -> str:
        """Return the URL of a new attach session; errors as for `exec_url`."""
        return self._url("attach", request)

    def port_forward_url(self, request: PortForwardRequest) -> str:
        """Return the URL of a new port-forward session; errors as for `exec_url`."""
        return self._url("portforward", request)

    def _url(self, kind: str, request: SessionRequest) -> str:
        port = self.port
        scheme = "https" if self._tls else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{port}/{kind}/{self._tokens.issue(request)}"

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            OSError: the address cannot be listened on.
        """
        family = socket.AF_INET if self._address.version == 4 else socket.AF_INET6
        listener = socket.create_server(
            (str(self._address), self._port), family=family, backlog=_BACKLOG
        )
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))
        logger.info("streaming server listens on %s, port %d", self._address, self.port)

    async def stop(self, seconds: float = 2) -> None:
        """Take no more connections, tell the clients, and end all sessions.

        Args:
            seconds: for the clients to take the news, and again for the handlers to clean up.
        """
        self._stopping.set()
        if self._accepting:
            await cancel(self._accepting)
        if self._listener:
            self._listener.close()
            self._listener = None
        running = set(self._connections)
        for task in await _wait(running, seconds):
            task.cancel()
        if stuck := await _wait(running, seconds):
            logger.error("%d streaming sessions do not end: their handlers go on", len(stuck))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        back_off = BackOff(*_ACCEPT_PAUSES)
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors or memory; sessions that end give some back.
                logger.error("cannot accept a streaming connection: %s", error)
                await asyncio.sleep(back_off.pause())
                continue
            back_off.reset()
            self._make_room()
            task = asyncio.create_task(self._serve(client))
            self._connections.add(task)
            self._waiting[task] = None
            task.add_done_callback(self._forget)

    def _make_room(self) -> None:
        """Let go of the connection that has waited longest, where too many have shown no token.

        A client shows it at once, so that those who only connect cannot keep it out.
        """
        while len(self._waiting) >= self._limits.max_waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._sessions.discard(task)
        self._waiting.pop(task, None)

    async def _serve(self, client: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None

        def admit() -> None:
            self._waiting.pop(task, None)
            self._sessions.add(task)

        try:
            wire = await self._open(client)
        except OSError as error:
            client.close()
            logger.info("a streaming connection did not come up: %s", error)
            return
        except asyncio.CancelledError:
            client.close()
            raise
        try:
            await first_of(
                self._dispatcher.serve(wire, admit), wire.watch(self._limits.silent_seconds)
            )
            await wire.hang_up(self._limits.linger_seconds)
        except OSError as error:
            logger.debug("a streaming client went away: %s", error)
        except Exception:
            logger.exception("a streaming connection failed")
        finally:
            await wire.abort()

    async def _open(self, client: socket.socket) -> TcpWire:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _TCP_OPTIONS.items():
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        wire = TcpWire(client, self._limits.write_buffer)
        # What this returns is not used: under TLS, uvloop's is a protocol of its own.
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: wire,
            client,
            ssl=self._tls,
            ssl_handshake_timeout=self._limits.head_seconds if self._tls else None,
        )
        return wire


async def _wait(tasks: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    """Return the tasks that do not end within the time."""
    if not tasks:
        return set()
    _, unfinished = await asyncio.wait(tasks, timeout=seconds)
    return unfinished


def _reachable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the address at which a client on this node finds a listener on `address`."""
    if not address.is_unspecified:
        return str(address)
    return "127.0.0.1" if address.version == 4 else "::1"
