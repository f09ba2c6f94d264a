"""A thread that owns its data and does what others ask it to."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from virtlet.errors import Unavailable

T = TypeVar("T")

ANSWER_LIMIT = 30.0
"""Seconds to wait for the thread; only a stalled disk makes it slower."""


class Worker:
    """Runs one loop on a thread, with calls from other threads in between.

    Args:
        name: of the thread, for people.
        loop: runs until `serve_calls` returns False; waits on `fileno` among its own files.
    """

    def __init__(self, name: str, loop: Callable[[], None]) -> None:
        self._name = name
        self._loop = loop
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]
        self._calls = queue.SimpleQueue()
        self._bell = -1
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and wait for it; calls still waiting are refused. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._calls.put(None)
            os.eventfd_write(self._bell, 1)
        thread.join()
        os.close(self._bell)
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call[1].cancel()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the thread and return what it returns or raises.

        Raises:
            Unavailable: the thread does not run, or does not answer in time.
        """
        answer: list[T] = []
        done: Future[None] = Future()
        with self._lock:
            if self._thread is None:
                raise Unavailable(f"{self._name} is not running; retry once the manager is ready")
            self._calls.put((lambda: answer.append(function()), done))
            os.eventfd_write(self._bell, 1)
        try:
            done.result(ANSWER_LIMIT)
        except (TimeoutError, CancelledError) as error:
            raise Unavailable(f"{self._name} does not answer; is the disk stalled?") from error
        return answer[0]

    def fileno(self) -> int:
        """Readable when a call waits."""
        return self._bell

    def serve_calls(self) -> bool:
        """Run the calls that wait; returns whether the loop should go on."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._calls.get_nowait()
                if call is None:
                    return False
                function, done = call
                try:
                    function()
                except Exception as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)
        return True
