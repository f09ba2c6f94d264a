"""A TCP port for HTTP/1.1 that idle clients cannot use up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

#: Connections that may be cut off; for one more the oldest is. A client that means it sends its
#: request at once, so others would have to connect as often in a moment to get it cut off.
MOST_WAITING = 64
#: Seconds for the head of a request, and for an answer to be taken.
_SECONDS = 10.0

Serve = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers a request; arguments are its head, and the connection after it."""


class HttpPort:
    """Accepts connections and reads the head of one request from each.

    A connection can be cut off for another one, except between `admit` and `release`.

    Args:
        serve: is run for each request; the connection is closed when it returns.
        head_limit: bytes of the longest head.
    """

    def __init__(self, serve: Serve, head_limit: int) -> None:
        self._serve = serve
        self._limit = head_limit
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._server = await asyncio.start_server(self._accept, host, port, limit=self._limit)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Close the listener and cut the connections."""
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._running)

    def admit(self, connection: asyncio.Task[None]) -> None:
        """Keep the connection that a task serves, however many others come."""
        self._waiting.pop(connection, None)

    def release(self, connection: asyncio.Task[None]) -> None:
        """Let the connection that a task serves be cut off for another one."""
        if len(self._waiting) >= MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        self._waiting[connection] = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = this_task()
        self._running.add(task)
        self.release(task)
        try:
            await self._answer(reader, writer)
            writer.close()
            async with asyncio.timeout(_SECONDS):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError) as error:
            log.debug("connection ended: %s", error)
        finally:
            self._running.discard(task)
            self._waiting.pop(task, None)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            respond(writer, "400 Bad Request", b"no HTTP request\n")
        else:
            await self._serve(head, reader, writer)


def respond(
    writer: asyncio.StreamWriter, status: str, body: bytes, kind: str = "text/plain"
) -> None:
    """Write an answer, after which the connection ends.

    Args:
        status: as in '404 Not Found'.
        kind: the body's content type.
    """
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n".encode()
        + body
    )


def this_task() -> asyncio.Task[None]:
    """The running task, which serves one connection."""
    task = asyncio.current_task()
    assert task is not None
    return task
