"""Sessions over SPDY.

Exec and attach have one stream each for error, stdin, stdout, stderr and resize; port-forward has
a data and an error stream for each forwarded connection.
"""

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any

from attrs import frozen

from virtlet.streaming.command_sessions import Resizes, Status
from virtlet.streaming.handlers import (
    AttachRequest,
    ExecRequest,
    ProtocolError,
    SessionEnded,
    SessionStreams,
    StreamClosed,
    StreamsMissing,
)
from virtlet.streaming.lifetime import Activity, Lifetime, SessionLimits, cancel
from virtlet.streaming.port_forward import Forwarder
from virtlet.streaming.spdy_connection import SpdyConnection, SpdyStream, StreamRefused
from virtlet.streaming.spdy_frames import ResetStatus
from virtlet.streaming.wire import Wire

logger = logging.getLogger(__name__)

# Newest first. v2 fixed half-closes, v3 brought resize, v4 the status as JSON; v5 adds to v4
# only what SPDY has anyway.
COMMAND_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
_WITH_RESIZE = COMMAND_PROTOCOLS[:3]
_WITH_JSON = COMMAND_PROTOCOLS[:2]

FORWARD_PROTOCOLS = ("portforward.k8s.io",)
_PORT = re.compile("[0-9]{1,5}")


@frozen
class _Stdin:
    """The client's stdin; torn down, it has ended."""

    stream: SpdyStream

    async def read(self, limit: int = 65536) -> bytes:
        try:
            return await self.stream.read(limit)
        except OSError:
            return b""


class SpdyCommand:
    """A session's streams on a SPDY connection.

    Args:
        protocol: one of COMMAND_PROTOCOLS; "" (a client that names none) is the first of all, as
            for the kubelet.
    """

    def __init__(
        self,
        wire: Wire,
        request: ExecRequest | AttachRequest,
        protocol: str,
        limits: SessionLimits,
        activity: Activity,
    ) -> None:
        self._connection = SpdyConnection(wire, self._accept, limits, activity)
        self._seconds = limits.stream_creation_seconds
        self._as_json = protocol in _WITH_JSON
        self._needed = {"error"}
        for kind in ("stdin", "stdout", "stderr"):
            if getattr(request, kind):
                self._needed.add(kind)
        self._allowed = set(self._needed)
        if request.tty and protocol in _WITH_RESIZE:
            self._allowed.add("resize")
        self._streams: dict[str, SpdyStream] = {}
        self._complete = asyncio.Event()

    def _accept(self, stream: SpdyStream) -> None:
        kind = stream.headers.get("streamtype", "")
        if kind not in self._allowed or kind in self._streams:
            raise StreamRefused(f"no {kind!r} stream is open to this session")
        self._streams[kind] = stream
        if self._allowed <= self._streams.keys():
            self._complete.set()

    async def run(self) -> None:
        """Read from the client until it hangs up."""
        await self._connection.run()

    async def open(self) -> SessionStreams:
        """Return the session's streams once the client has opened them."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._complete.wait()
        except TimeoutError:
            if missing := self._needed - self._streams.keys():
                raise StreamsMissing(
                    f"the client did not open its {', '.join(sorted(missing))} stream within "
                    f"{self._seconds:g} seconds"
                ) from None
        stdin = self._streams.get("stdin")
        return SessionStreams(
            stdin and _Stdin(stdin),
            self._streams.get("stdout"),
            self._streams.get("stderr"),
            Resizes(self._streams.get("resize")),
        )

    async def finish(self, status: Status, *, client_fault: bool = False) -> None:
        """Close all streams, tell the client the result and take leave."""
        error = self._streams.get("error")
        for stream in self._streams.values():
            stream.inbox.discard()
            if stream is not error:
                await stream.close()
        if error:
            await error.write(status.encode(as_json=self._as_json))
            await error.close()
        await self._connection.go_away(client_fault=client_fault)


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
