"""A bounded queue of bytes between a connection's read loop and the handler of one stream."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from virtlet.streaming.sessions import StreamClosed

# What a queued piece costs beside its bytes, so that a flood of tiny pieces is bounded too.
_PIECE_COST = 64

_LOOK_SECONDS = 1.0


class Inbox:
    """Bytes in order, one reader, one feeder.

    The feeder asks `full` before each `put` and waits with `room`; `put` itself never waits,
    so the queue holds at most the limit and one piece.

    Args:
        limit: returns how many bytes may wait; it may change over time.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._cost = 0
        self._ended = False
        self._discarding = False
        self._error: StreamClosed | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def full(self) -> bool:
        """Whether the feeder has to wait."""
        return not self._writable.is_set()

    @property
    def ended(self) -> bool:
        """Whether the feeder has said its last word."""
        return self._ended

    def put(self, data: bytes) -> None:
        """Append data; dropped once the reader has lost interest."""
        if not data or self._discarding or self._error:
            return
        self._pieces.append(data)
        self._cost += len(data) + _PIECE_COST
        self._readable.set()
        if self._cost >= self._limit():
            self._writable.clear()

    def end(self) -> None:
        """No more follows; the reader still gets what is queued."""
        self._ended = True
        self._readable.set()

    def fail(self, error: StreamClosed) -> None:
        """The stream broke: what is queued is dropped and readers get the error."""
        if not self._ended or self._pieces:
            self._error = self._error or error
        self._clear()
        self._readable.set()

    def discard(self) -> None:
        """The reader is gone: drop what is queued and what still comes."""
        self._discarding = True
        self._clear()

    def _clear(self) -> None:
        self._pieces.clear()
        self._cost = 0
        self._writable.set()

    async def room(self) -> None:
        """Wait until the queue is no longer full."""
        await self._writable.wait()

    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes, or b"" at the end.

        Raises:
            StreamClosed: the stream broke.
        """
        while not self._pieces:
            if self._error:
                raise self._error
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        taken, left = [], limit
        while self._pieces and left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                piece = piece[:left]
            else:
                self._cost -= _PIECE_COST
            taken.append(piece)
            left -= len(piece)
        self._cost -= limit - left
        if self._cost < self._limit():
            self._writable.set()
        return taken[0] if len(taken) == 1 else b"".join(taken)


class Lifeline(Protocol):
    """Shows whether the client is there while nothing is read from it."""

    def probe(self) -> None:
        """Raise OSError if the client is gone."""


async def wait_for_room(inbox: Inbox, lifeline: Lifeline, patience: float | None = None) -> bool:
    """Wait until the inbox has room; False if its reader takes nothing for `patience` seconds.

    Raises:
        OSError: the client went away meanwhile.
    """
    waited = 0.0
    while inbox.full:
        if patience is not None and waited >= patience:
            return False
        look = _LOOK_SECONDS if patience is None else min(_LOOK_SECONDS, patience - waited)
        try:
            async with asyncio.timeout(look):
                await inbox.room()
        except TimeoutError:
            waited += look
            lifeline.probe()
    return True
