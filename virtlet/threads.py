"""Threads that do one thing again and again or several in order, and pauses after failures."""

import contextlib
import logging
import math
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Executor, Future
from random import Random
from typing import TypeVar

from attrs import define

from virtlet.errors import Unavailable

T = TypeVar("T")

ANSWER_TIME = 30.0
"""Seconds to wait for a call on a worker; only a stalled disk makes it slower."""
_LONGEST_WAIT = 86400.0
"""Seconds that poll(2) is given at most."""

log = logging.getLogger(__name__)


class BackOff:
    """Pauses that grow from one failed attempt to the next.

    Args:
        first: seconds of the first pause.
        most: seconds of the longest one.
        growth: factor from one pause to the next.
        jitter: the largest part of a pause that is left out at random, so that what failed
            together is not tried again together.
    """

    def __init__(
        self, first: float, most: float, *, growth: float = 2.0, jitter: float = 0.1
    ) -> None:
        self._first = self._next = first
        self._most = most
        self._growth = growth
        self._jitter = jitter
        # Hypothesis watches the global generator's state in tests.
        self._random = Random()

    def pause(self) -> float:
        """Seconds until the next attempt."""
        pause = self._next
        self._next = min(pause * self._growth, self._most)
        return pause * (1.0 - self._jitter * self._random.random())

    def reset(self) -> None:
        """Begin with the first pause again: an attempt succeeded."""
        self._next = self._first


@define(eq=False)
class _Run:
    """One thread of a worker, from its start to its end."""

    bell: int
    """An eventfd, readable when the worker was woken."""
    thread: threading.Thread | None = None
    stopping: bool = False


class Worker:
    """Runs a function on a thread of its own: when its time has come, and when it is woken.

    What the function raises is logged, and it runs again after a back-off.

    Args:
        name: of the thread.
        work: returns the seconds until it runs again, `math.inf` to run only when woken, or None
            to end the thread.
        back_off: the pauses after errors; from 0.1 to 5 seconds by default.
        drain: whether `work` runs once more before the thread is stopped.

    Attributes:
        files: descriptors that wake the worker, with the events of poll(2) to wait for; set by
            `work`.
        ready: those that woke it, with the events that came; for `work`.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        *,
        back_off: BackOff | None = None,
        drain: bool = False,
    ) -> None:
        self.name = name
        self.files: dict[int, int] = {}
        self.ready: list[tuple[int, int]] = []
        self._work = work
        self._back_off = back_off or BackOff(0.1, 5.0)
        self._drain = drain
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]]
        self._calls = queue.SimpleQueue()

    @property
    def running(self) -> bool:
        """Whether it was started, and has neither been stopped nor ended."""
        return self._run is not None

    @property
    def stopping(self) -> bool:
        """For `work`, on the worker's thread: whether to come to an end."""
        run = self._run
        return run is None or run.thread is not threading.current_thread()

    def start(self, delay: float = 0.0) -> None:
        """Start the thread; `work` runs first after `delay` seconds. Idempotent."""
        with self._lock:
            if self._run is not None:
                return
            run = _Run(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            run.thread = threading.Thread(
                target=self._loop, args=(run, delay), name=self.name, daemon=True
            )
            self._run = run
            try:
                run.thread.start()
            except BaseException:
                self._run = None
                os.close(run.bell)
                raise

    def wake(self) -> None:
        """Run `work` now, or once more if it is running; nothing to do unless started."""
        with self._lock:
            if self._run is not None:
                os.eventfd_write(self._run.bell, 1)

    def stop(self, patience: float | None = None) -> None:
        """End the thread; calls that still wait are refused. Idempotent.

        Args:
            patience: seconds to wait for `work` if it is running; None for as long as it takes.
        """
        with self._lock:
            run, self._run = self._run, None
            if run is None:
                return
            run.stopping = True
            os.eventfd_write(run.bell, 1)
        assert run.thread is not None
        if run.thread is not threading.current_thread():
            run.thread.join(patience)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the thread, before `work`; return what it returns or raises.

        Raises:
            Unavailable: the thread does not run, or does not answer in time.
        """
        answer: list[T] = []
        done: Future[None] = Future()
        with self._lock:
            if self._run is None:
                raise Unavailable(f"{self.name} is not running; retry once the manager is ready")
            self._calls.put((lambda: answer.append(function()), done))
            os.eventfd_write(self._run.bell, 1)
        try:
            done.result(ANSWER_TIME)
        except (TimeoutError, CancelledError) as error:
            raise Unavailable(f"{self.name} does not answer; is the disk stalled?") from error
        return answer[0]

    def _loop(self, run: _Run, delay: float) -> None:
        due = time.monotonic() + delay
        try:
            while True:
                try:
                    self._wait(run, due)
                except (OSError, ValueError):
                    log.exception("%s cannot wait for its files", self.name)
                    self.files, self.ready = {}, []
                if run.stopping:
                    break
                self._serve_calls()
                pause = self._attempt()
                if pause is None:
                    return
                due = time.monotonic() + pause
            if self._drain:
                self._attempt()
        finally:
            with self._lock:
                if self._run is run:
                    self._run = None
                os.close(run.bell)
                if self._run is None:
                    self._refuse_calls()

    def _wait(self, run: _Run, due: float) -> None:
        """Wait until the time has come, somebody wakes us, or a file is ready."""
        poll = select.poll()
        poll.register(run.bell, select.POLLIN)
        for descriptor, events in self.files.items():
            poll.register(descriptor, events)
        ready = poll.poll(_milliseconds(due))
        self.ready = [(file, events) for file, events in ready if file != run.bell]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(run.bell)

    def _attempt(self) -> float | None:
        try:
            pause = self._work()
        except Exception:
            pause = self._back_off.pause()
            log.exception("%s failed; it goes on in %.1f s", self.name, pause)
            # What it waited for may be what it fails on.
            self.files = {}
        else:
            self._back_off.reset()
        return pause

    def _serve_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                function, done = self._calls.get_nowait()
                try:
                    function()
                except Exception as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)

    def _refuse_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()[1].cancel()


class OrderedExecutor:
    """Runs functions on the threads of an executor, one at a time and in order for each key.

    Args:
        executor: a key takes one of its threads at most.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._guard = threading.Lock()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        """By key, while a thread serves it."""

    def submit(self, key: Hashable, work: Callable[[], None]) -> None:
        """Queue a function behind those of the same key; returns at once.

        Args:
            key: what it is for.
            work: must not raise.
        """
        with self._guard:
            known = self._waiting.get(key)
            if known is not None:
                known.append(work)
                return
            self._waiting[key] = deque((work,))
        self._executor.submit(self._drain_key, key)

    def _drain_key(self, key: Hashable) -> None:
        while True:
            with self._guard:
                waiting = self._waiting[key]
                if not waiting:
                    del self._waiting[key]
                    return
                work = waiting.popleft()
            work()


def _milliseconds(due: float) -> float | None:
    """Until a moment (monotonic seconds), for poll(2)."""
    if due == math.inf:
        return None
    left = max(0.0, min(due - time.monotonic(), _LONGEST_WAIT))
    return math.ceil(left * 1000)
