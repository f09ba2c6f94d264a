"""Work done in order: one thing after another, and other things meanwhile."""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor


class OrderedExecutor:
    """Does work on the threads of an executor, in the order it came for each key.

    Args:
        executor: whose threads; a key takes one of them at most.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._guard = threading.Lock()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        """By key, while a thread is at it."""

    def submit(self, key: Hashable, work: Callable[[], None]) -> None:
        """Have work done, after all that came for the key before; returns at once.

        Args:
            key: what it concerns.
            work: must not raise.
        """
        with self._guard:
            known = self._waiting.get(key)
            if known is not None:
                known.append(work)
                return
            self._waiting[key] = deque((work,))
        self._executor.submit(self._work_off, key)

    def _work_off(self, key: Hashable) -> None:
        while True:
            with self._guard:
                waiting = self._waiting[key]
                if not waiting:
                    del self._waiting[key]
                    return
                work = waiting.popleft()
            work()
