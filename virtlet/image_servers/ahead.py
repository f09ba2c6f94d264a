"""Reading ahead: an image is fetched, unpacked and stored on a thread each.

All three spend their time in the kernel or in hashing and unpacking, which let other threads run.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MOST = 4 << 20
"""Bytes that wait to be taken; one chunk may go beyond."""


@contextmanager
def ahead(
    chunks: Iterator[bytes], close: Callable[[], None] | None = None
) -> Iterator[Iterator[bytes]]:
    """Have chunks made on another thread, some MiB before they are taken.

    Args:
        chunks: makes them; what it raises, the iterator that is given raises in that place.
        close: ends what `chunks` may wait for, so that its thread is over at the end. Without it
            the thread is not waited for, and the owner of what it may wait for closes that.
    """
    line = _Line()

    def work() -> None:
        try:
            for chunk in chunks:
                if not line.put(chunk):
                    return
            line.finish(None)
        except BaseException as error:
            line.finish(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="image-layer", daemon=True)
    thread.start()
    try:
        yield line.taken()
    finally:
        line.leave()
        if close is not None:
            close()
            thread.join()


class _Line:
    """Chunks between the thread that makes them and the one that takes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._finished = False
        self._error: BaseException | None = None

    def put(self, chunk: bytes) -> bool:
        """Hand a chunk over once there is room; False when nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < _MOST or self._finished)
            if self._finished:
                return False
            self._waiting.append(chunk)
            self._size += len(chunk)
            self._changed.notify_all()
            return True

    def finish(self, error: BaseException | None) -> None:
        """Nothing follows but this error, if it is one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def leave(self) -> None:
        """Let go of what waits; it ends who puts and who takes."""
        with self._changed:
            self._waiting.clear()
            self._finished, self._error = True, None
            self._changed.notify_all()

    def taken(self) -> Iterator[bytes]:
        """What was put, in order."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
                batch, self._waiting = self._waiting, deque()
                self._size = 0
                error = None if batch else self._error
                self._changed.notify_all()
            if error is not None:
                raise error
            if not batch:
                return
            while batch:  # What has been taken is held no longer.
                yield batch.popleft()
