"""Exec and attach over SPDY: one stream each for error, stdin, stdout, stderr and resize."""

import asyncio

from attrs import frozen

from virtlet.core.streaming.activity import Activity
from virtlet.core.streaming.errors import StreamsMissing
from virtlet.core.streaming.limits import Limits
from virtlet.core.streaming.resize import Resizes
from virtlet.core.streaming.sessions import AttachRequest, ExecRequest, SessionStreams
from virtlet.core.streaming.spdy.connection import SpdyConnection, StreamRefused
from virtlet.core.streaming.spdy.stream import SpdyStream
from virtlet.core.streaming.status import Status
from virtlet.core.streaming.wire import Wire

# Newest first. v2 fixed half-closes, v3 brought resize, v4 the status as JSON; v5 adds to v4
# only what SPDY has anyway.
PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
_WITH_RESIZE = PROTOCOLS[:3]
_WITH_JSON = PROTOCOLS[:2]


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
        protocol: one of PROTOCOLS; "" (a client that names none) is the first of all, as for
            the kubelet.
    """

    def __init__(
        self,
        wire: Wire,
        request: ExecRequest | AttachRequest,
        protocol: str,
        limits: Limits,
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
