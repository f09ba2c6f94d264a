"""The health and metrics endpoint: /healthz, /readyz, /metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from criproxy.observe.metrics import Metrics
from criproxy.runtimes.runtime import Runtime

_SECONDS = 5.0
_LIMIT = 8 * 1024


class Endpoint:
    """A small HTTP server for GET.

    `/healthz` is 200 while the proxy runs, `/readyz` is 200 while its primary runtime answers;
    both say in JSON how each runtime is.

    Args:
        runtimes: the primary first.
        metrics: shown under /metrics.
    """

    def __init__(self, runtimes: Sequence[Runtime], metrics: Metrics) -> None:
        self._runtimes = runtimes
        self._metrics = metrics
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address.

        Raises:
            OSError: when it cannot be listened on.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_LIMIT)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    def stop(self) -> None:
        """Close the listener."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(head.split(b"\r\n", 1)[0])
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    def _answer(self, line: bytes) -> tuple[str, str, bytes]:
        method, _, rest = line.partition(b" ")
        path = rest.split(b" ")[0].split(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", "text/plain", b"only GET is answered\n"
        if path == b"/metrics":
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", self._metrics.text()
        if path == b"/healthz":
            return "200 OK", "application/json", self._health()
        if path == b"/readyz":
            ready = self._runtimes[0].answering
            status = "200 OK" if ready else "503 Service Unavailable"
            return status, "application/json", self._health()
        return "404 Not Found", "text/plain", b"there are /healthz, /readyz and /metrics\n"

    def _health(self) -> bytes:
        states = [
            {
                "name": r.name,
                "primary": r.primary,
                "answering": r.answering,
                "reason": r.reason,
                "everSeen": r.last.seen,
            }
            for r in self._runtimes
        ]
        return json.dumps({"runtimes": states}).encode() + b"\n"
