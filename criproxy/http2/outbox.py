"""Writes gathered over one turn of the event loop: each connection's bytes leave in one piece."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushable(Protocol):
    """Something with bytes to be sent."""

    def flush(self) -> None:
        """Send them."""


class Outbox:
    """What has to be flushed, over all connections.

    A frame that comes in on one connection mostly goes out on another. Flushing both at the end of
    the same callback saves the event loop a turn, and the call that time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Flushable, None] = {}
        self._reading = False
        self._scheduled = False

    def add(self, connection: Flushable) -> None:
        """Flush a connection soon, once."""
        self._waiting[connection] = None
        if not self._reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def begin(self) -> None:
        """A connection starts to read: what that causes is flushed by `end`."""
        self._reading = True

    def end(self) -> None:
        """The connection has read what there was."""
        self._reading = False
        self._flush()

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            for connection in waiting:
                connection.flush()
