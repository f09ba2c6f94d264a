"""Streaming URLs (exec, attach, port-forward): absolute ones pass unchanged.

Relative ones lead through the relay: the first path segment names the runtime, the rest is the
runtime's path. After the request's head, bytes pass unread, so SPDY and WebSocket both work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.runtime import Runtime
from virtlet.http_port import HttpPort, respond, this_task


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
_CHUNK = 64 * 1024
#: How a server switches protocols (RFC 9110, section 15.2.2).
_AGREED = b"HTTP/1.1 101 "


class StreamRelay:
    """An HTTP relay in front of the runtimes' streaming servers.

    A stream is kept once the runtime has agreed to it by switching protocols, which takes a token
    from the runtime. All other connections can be cut off for another one.

    Args:
        runtimes: the runtimes; those with a `stream_url` can be reached.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._bases = {r.name: r.config.stream_url for r in runtimes if r.config.stream_url}
        self._port = HttpPort(self._relay, _HEAD_LIMIT)

    @property
    def needed(self) -> bool:
        """Whether any runtime can give relative URLs."""
        return bool(self._bases)

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the base URL.

        Raises:
            OSError: when the address cannot be listened on.
        """
        address, number = await self._port.start(host, port)
        return f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"

    async def stop(self) -> None:
        """Close the listener and cut the connections."""
        await self._port.stop()

    async def _relay(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line, _, headers = head.partition(b"\r\n")
        parts = line.split(b" ")
        path = parts[1].decode(errors="replace") if len(parts) == 3 else ""
        name, _, rest = path.removeprefix("/").partition("/")
        base = self._bases.get(name)
        if base is None:
            respond(writer, "404 Not Found", b"no such runtime\n")
            return
        target = urlsplit(base)
        try:
            up_reader, up_writer = await asyncio.open_connection(target.hostname, target.port)
        except OSError as error:
            text = f"{name}'s streaming server: {error}\n"
            respond(writer, "502 Bad Gateway", text.encode())
            return
        if b"\r\nupgrade:" not in head.lower():
            # The relay does not parse a second request on this connection: allow none.
            headers = b"Connection: close\r\n" + _without_connection(headers)
        request = b" ".join((parts[0], f"{target.path}/{rest}".encode(), parts[2]))
        up_writer.write(request + b"\r\n" + headers)
        connection = this_task()

        async def copy_answer() -> None:
            answer = await up_reader.read(_CHUNK)
            if answer.startswith(_AGREED):
                self._port.admit(connection)
            writer.write(answer)
            await _copy(up_reader, writer)
            self._port.release(connection)

        try:
            await asyncio.gather(_copy(reader, up_writer), copy_answer())
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
