"""The proxy as a whole: start, serve and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import time
from contextlib import suppress
from functools import partial

from criproxy.call_log import CHANGES, CallLog, harmless_problem
from criproxy.config import Config, RuntimeConfig
from criproxy.health_endpoint import Endpoint, Metrics
from criproxy.http2.endpoints import ServerConnection
from criproxy.http2.frames import Header, first
from criproxy.http2.stream import Outbox, Stream
from criproxy.methods import BY_PATH
from criproxy.routes.table import Table
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code
from criproxy.runtimes.connector import Connector
from criproxy.runtimes.last_known import InventoryFile
from criproxy.runtimes.runtime import Runtime
from criproxy.streaming_urls import StreamRelay, StreamUrls
from virtlet.traces import CONTEXT, OFF, Span, Traces

log = logging.getLogger(__name__)

#: Seconds that running calls have when the proxy is asked to stop.
DRAIN_SECONDS = 2.0
#: Seconds that the start waits for the first attempts to connect to runtimes.
FIRST_SECONDS = 1.5
#: Longest first message of a call; what a kubelet sends is below 16 MiB.
_REQUEST_LIMIT = 16 << 20
_LONGEST_NAME = 128


class Proxy:
    """The whole proxy.

    Args:
        config: a checked configuration.
        traces: where calls are seen.

    Attributes:
        http_address: of the health endpoint, once started with one.
    """

    def __init__(self, config: Config, traces: Traces = OFF) -> None:
        self._config = config
        self._traces = traces
        self._metrics = Metrics()
        self._outbox = Outbox()
        self.identity = secrets.token_hex(16).encode()
        self._calls: set[ServerCall] = set()
        self._connections: set[ServerConnection] = set()
        self.runtimes = tuple(
            Runtime(
                runtime,
                primary=position == 0,
                grace=config.grace if runtime.grace is None else runtime.grace,
                identity=self.identity,
                record=self._metrics.runtime_call,
            )
            for position, runtime in enumerate(config.runtimes)
        )
        self._metrics.watch(self.runtimes)
        self._call_log = CallLog(self.runtimes)
        urls = StreamUrls()
        self._urls = urls
        self.table = Table(self.runtimes, urls, self.identity)
        self.endpoint = Endpoint(self.runtimes, self._metrics)
        self._relay = StreamRelay(self.runtimes)
        self._connectors = [self._connector(r) for r in self.runtimes]
        self._connecting: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self.http_address: tuple[str, int] | None = None

    def _connector(self, runtime: Runtime) -> Connector:
        saved = None
        if self._config.state_dir is not None:
            settings: RuntimeConfig = runtime.config
            saved = InventoryFile(self._config.state_dir, settings.name, settings.socket)
            saved.load(runtime.last)
        return Connector(runtime, self._outbox, saved)

    async def start(self) -> None:
        """Connect to the runtimes that are there, and listen.

        Raises:
            OSError: when an address cannot be listened on.
        """
        if self._config.http is not None:
            self.http_address = await self.endpoint.port.start(*self._config.http)
        if self._relay.needed:
            self._urls.base = await self._relay.start(*self._config.stream_listen)
        self._connecting = [asyncio.create_task(connector.run()) for connector in self._connectors]
        # A client's first call must not fail while a runtime is being connected, nor wait for a
        # runtime that does not answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                await asyncio.gather(*(connector.tried.wait() for connector in self._connectors))
        await self._listen()
        # Objects made so far live as long as the process: keep them out of later collections.
        gc.collect()
        gc.freeze()

    async def _listen(self) -> None:
        path = self._config.listen
        with suppress(FileNotFoundError):
            os.unlink(path)
        old = os.umask(0o777 & ~self._config.socket_mode)
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(
                lambda: ServerConnection(self._outbox, self._on_call, self._on_open), path
            )
        finally:
            os.umask(old)
        os.chmod(path, self._config.socket_mode)

    def _on_open(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))

    def _on_call(self, stream: Stream, headers: list[Header], ended: bool) -> None:
        path = (first(headers, b":path") or b"").decode(errors="replace")
        changes = path in BY_PATH and BY_PATH[path].name in CHANGES
        received = partial(_context_of, headers)
        span = self._traces.begin(path[1 : 1 + _LONGEST_NAME], received, alone=changes)
        headers = _continued(headers, span)
        done = partial(self._on_done, span)
        call = ServerCall(stream, headers, ended, _REQUEST_LIMIT, self.table.route, done)
        self._calls.add(call)
        stream.sink = call
        call.start()

    def _on_done(self, span: Span, call: ServerCall, code: Code) -> None:
        self._calls.discard(call)
        name = call.method if call.path in BY_PATH else "unknown"
        seconds = time.monotonic() - call.started
        self._metrics.client_call(name, code, seconds)
        self._call_log.ended(call, code, seconds)
        if span.recording:
            about = {"runtime": call.runtime} | self._call_log.about(call)
            span.end(code.name, harmless_problem(call), about)

    async def stop(self) -> None:
        """Take no new calls, wait a moment for running ones, and close everything."""
        if self._server is not None:
            self._server.close()
            with suppress(FileNotFoundError):
                os.unlink(self._config.listen)
        for connection in list(self._connections):
            connection.drain()
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(not c.endless for c in self._calls) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for call in list(self._calls):
            call.cancel()
        await self.endpoint.port.stop()
        await self._relay.stop()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connector in self._connectors:
            await connector.save()
        # Let the last frames be sent.
        await asyncio.sleep(0.05)


def _context_of(headers: list[Header]) -> dict[str, str]:
    """Return the headers that say which trace a call is part of."""
    found = {name: first(headers, name.encode()) for name in CONTEXT}
    return {name: value.decode("latin-1") for name, value in found.items() if value is not None}


def _continued(headers: list[Header], span: Span) -> list[Header]:
    """Return a call's headers with the span as the parent of what comes of it."""
    carried = {name.encode(): value.encode() for name, value in span.carried().items()}
    if not carried:
        return headers
    return [*(h for h in headers if h[0].decode("latin-1") not in CONTEXT), *carried.items()]
