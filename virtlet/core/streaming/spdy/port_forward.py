"""Port-forward over SPDY: a data and an error stream for each forwarded connection."""

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any

from virtlet.core.streaming.errors import ProtocolError, SessionEnded, StreamClosed
from virtlet.core.streaming.lifetime import Lifetime
from virtlet.core.streaming.port_forward import Forwarder
from virtlet.core.streaming.spdy.connection import SpdyConnection, StreamRefused
from virtlet.core.streaming.spdy.frames import ResetStatus
from virtlet.core.streaming.spdy.stream import SpdyStream
from virtlet.core.streaming.tasks import cancel
from virtlet.core.streaming.wire import Wire

logger = logging.getLogger(__name__)

PROTOCOLS = ("portforward.k8s.io",)
_PORT = re.compile("[0-9]{1,5}")


class SpdyPortForward:
    """Pairs the streams of one client and has each pair forwarded."""

    def __init__(self, wire: Wire, forwarder: Forwarder, lifetime: Lifetime) -> None:
        limits = lifetime.limits
        self._forwarder = forwarder
        self._lifetime = lifetime
        self._creation_seconds = limits.stream_creation_seconds
        self._connection = SpdyConnection(
            wire, self._accept, limits, lifetime.activity, patience=limits.stall_seconds
        )
        self._halves: dict[tuple[str, str], tuple[SpdyStream, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve the client until it hangs up or one side has to end it."""
        try:
            await self._lifetime.spend(self._connection.run(), leave=self._leave)
        finally:
            for _, timer in self._halves.values():
                timer.cancel()
            await cancel(*self._tasks)

    async def _leave(self, ended: SessionEnded) -> None:
        await self._connection.go_away(client_fault=isinstance(ended, ProtocolError))

    def _accept(self, stream: SpdyStream) -> None:
        headers = stream.headers
        kind, port = headers.get("streamtype", ""), headers.get("port", "")
        if kind not in ("data", "error"):
            raise StreamRefused(f"a {kind!r} stream in a port-forward session")
        if not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
            raise StreamRefused(f"no port is called {port[:20]!r}")
        request = headers.get("requestid", "")
        if not request:
            # Old clients give none and open the error stream, then the data stream.
            first = stream.stream_id if kind == "error" else stream.stream_id - 2
            request = f"of stream {first}"
        other = "error" if kind == "data" else "data"
        if (request, kind) in self._halves:
            raise StreamRefused(f"a second {kind} stream for request {request[:20]}")
        if half := self._halves.pop((request, other), None):
            partner, timer = half
            timer.cancel()
            data, error = (stream, partner) if kind == "data" else (partner, stream)
            # Whether or not the client says so: there is nothing for it to send there.
            error.client_finished()
            self._start(self._forwarder.forward(int(data.headers["port"]), data, error))
            return
        timer = asyncio.get_running_loop().call_later(
            self._creation_seconds, self._give_up, request, kind
        )
        self._halves[request, kind] = stream, timer

    def _give_up(self, request: str, kind: str) -> None:
        stream, _ = self._halves.pop((request, kind))

        async def refuse() -> None:
            if kind == "error":
                await stream.write(f"no data stream came for request {request}".encode())
                await stream.close()
            else:
                await stream.reset(ResetStatus.CANCEL)

        self._start(refuse())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            if isinstance(error, StreamClosed):
                return
            logger.error("a forwarded connection failed", exc_info=error)
