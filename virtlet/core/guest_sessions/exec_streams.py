"""The caller's ends of a command's streams, as plugins see them."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from virtlet.streaming.handlers import OutputStream, SessionStreams

T = TypeVar("T")

_LOOK = 0.5
"""Seconds between looks at whether the client is still there."""


class CollectedStreams:
    """No input, and the beginning of each output stream kept: what ExecSync wants.

    Args:
        limit: bytes of each stream; the rest is thrown away, as CRI says.
        gone: whether nobody wants the result any more.
        room: given a number of bytes, how many of them may be kept.
    """

    def __init__(
        self, limit: int, gone: Callable[[], bool], room: Callable[[int], int] = lambda size: size
    ) -> None:
        self._limit = limit
        self._gone = gone
        self._room = room
        self.output = bytearray()
        self.errors = bytearray()

    def read_input(self, limit: int, timeout: float) -> bytes | None:
        """The end of the input."""
        return b""

    def write_output(self, data: bytes) -> None:
        """Keep what fits."""
        self._keep(self.output, data)

    def write_error(self, data: bytes) -> None:
        """Keep what fits."""
        self._keep(self.errors, data)

    def _keep(self, kept: bytearray, data: bytes) -> None:
        size = min(len(data), self._limit - len(kept))
        if size:
            kept += data[: self._room(size)]

    def terminal_size(self) -> tuple[int, int] | None:
        """There is no terminal."""
        return None

    @property
    def gone(self) -> bool:
        """Whether nobody wants the result any more."""
        return self._gone()


class BridgedStreams:
    """The streams of a streaming session, which live on an event loop, for a thread.

    The loop is asked when the thread wants something and not before: a client is never read
    faster than the guest takes it, and the guest is never read faster than the client.

    Args:
        loop: the sessions'.
        streams: the session's.
        stopping: whether the manager stops.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        streams: SessionStreams,
        stopping: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._streams = streams
        self._stopping = stopping
        self._left = threading.Event()
        self._input: concurrent.futures.Future[bytes] | None = None
        self._rest = b""
        self._size: tuple[int, int] | None = None

    # On the event loop

    async def follow_size(self) -> None:
        """Take note of terminal sizes until there are no more."""
        async for size in self._streams.resizes:
            self._size = (size.width, size.height)

    def leave(self) -> None:
        """Tell the thread that the client has gone, or that nothing more is wanted of it."""
        self._left.set()

    # On the session's thread

    def read_input(self, limit: int, timeout: float) -> bytes | None:
        """See `GuestStreams.read_input`."""
        if not self._rest:
            if self._streams.stdin is None or self.gone:
                return b""
            if self._input is None:
                self._input = self._ask(self._streams.stdin.read(min(limit, 1 << 16)))
            if not _done(self._input, timeout):
                return None
            self._rest = _result(self._input) or b""
            self._input = None
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    def write_output(self, data: bytes) -> None:
        """See `GuestStreams.write_output`."""
        self._write(self._streams.stdout, data)

    def write_error(self, data: bytes) -> None:
        """See `GuestStreams.write_error`."""
        self._write(self._streams.stderr, data)

    def terminal_size(self) -> tuple[int, int] | None:
        """See `GuestStreams.terminal_size`."""
        size, self._size = self._size, None
        return size

    @property
    def gone(self) -> bool:
        """Whether the client has gone, or the manager stops."""
        return self._left.is_set() or self._stopping()

    def close(self) -> None:
        """Stop asking the loop for input."""
        if self._input is not None:
            self._input.cancel()

    def _write(self, stream: OutputStream | None, data: bytes) -> None:
        if stream is None or self.gone:
            return
        writing = self._ask(stream.write(data))
        while not _done(writing, _LOOK):
            if self.gone:
                writing.cancel()
                return
        if writing.cancelled() or writing.exception():
            self.leave()

    def _ask(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            answer: concurrent.futures.Future[T] = concurrent.futures.Future()
            answer.set_exception(ConnectionError("the server has stopped"))
            return answer


def _done(work: "concurrent.futures.Future[Any]", timeout: float) -> bool:
    return work in concurrent.futures.wait((work,), timeout).done


def _result(work: "concurrent.futures.Future[bytes]") -> bytes | None:
    """What was read; None where the stream broke, which is its end to the command."""
    return None if work.cancelled() or work.exception() else work.result()
