"""Streaming URLs (exec, attach, port-forward): absolute ones pass unchanged.

Relative ones lead through the relay: the first path segment names the runtime, the rest is the
runtime's path. After the request's head, bytes pass unread, so SPDY and WebSocket both work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.runtime import Runtime

log = logging.getLogger(__name__)


class StreamUrls:
    """Rewrites relative URLs.

    Attributes:
        base: `http://host:port` of this proxy's own streaming relay, set once it listens.
    """

    def __init__(self) -> None:
        self.base: str | None = None

    def through(self, runtime: Runtime, answer: Any) -> bool:
        """Make the URL in an answer reachable; says whether it was changed.

        Raises:
            RpcError: FAILED_PRECONDITION if the URL is relative without a `stream_url`.
        """
        url = answer.url
        if not url.startswith("/") or url.startswith("//"):
            return False
        if runtime.config.stream_url is None or self.base is None:
            raise RpcError(
                Code.FAILED_PRECONDITION,
                f"{runtime.where} gave a streaming URL without a host; set its 'stream_url' in "
                "criproxy's configuration to the address of its streaming server",
            )
        answer.url = f"{self.base}/{runtime.name}{url}"
        return True


_HEAD_LIMIT = 64 * 1024
_HEAD_SECONDS = 10.0
_CHUNK = 64 * 1024


class StreamRelay:
    """An HTTP relay in front of the runtimes' streaming servers.

    Args:
        runtimes: the runtimes; those with a `stream_url` can be reached.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._bases = {r.name: r.config.stream_url for r in runtimes if r.config.stream_url}
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def needed(self) -> bool:
        """Whether any runtime can give relative URLs."""
        return bool(self._bases)

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the base URL.

        Raises:
            OSError: when the address cannot be listened on.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_LIMIT)
        name = self._server.sockets[0].getsockname()
        shown = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"http://{shown}:{name[1]}"

    async def stop(self) -> None:
        """Close the listener and cut the connections."""
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError) as error:
            log.debug("streaming connection ended: %s", error)
        finally:
            self._running.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await _answer(writer, "400 Bad Request", "no HTTP request")
            return
        line, _, headers = head.partition(b"\r\n")
        parts = line.split(b" ")
        path = parts[1].decode(errors="replace") if len(parts) == 3 else ""
        name, _, rest = path.removeprefix("/").partition("/")
        base = self._bases.get(name)
        if base is None:
            await _answer(writer, "404 Not Found", "no such runtime")
            return
        target = urlsplit(base)
        try:
            up_reader, up_writer = await asyncio.open_connection(target.hostname, target.port)
        except OSError as error:
            await _answer(writer, "502 Bad Gateway", f"{name}'s streaming server: {error}")
            return
        if b"\r\nupgrade:" not in head.lower():
            # The relay does not parse a second request on this connection: allow none.
            headers = b"Connection: close\r\n" + _without_connection(headers)
        request = b" ".join((parts[0], f"{target.path}/{rest}".encode(), parts[2]))
        up_writer.write(request + b"\r\n" + headers)
        try:
            await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))
        finally:
            up_writer.close()


def _without_connection(headers: bytes) -> bytes:
    lines = headers.split(b"\r\n")
    return b"\r\n".join(h for h in lines if not h.lower().startswith(b"connection:"))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, and pass the end on as a half-close."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = text.encode() + b"\n"
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n".encode()
        + body
    )
    await writer.drain()
