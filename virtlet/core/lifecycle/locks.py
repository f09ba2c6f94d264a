"""One lock per key, kept only while somebody wants it."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from attrs import define, field

from virtlet.errors import Unavailable

_LOOK = 0.5
"""Seconds between two looks at what the holder of a lock does."""


@define(eq=False)
class _Lock:
    """The lock of one key."""

    lock: threading.RLock = field(factory=threading.RLock)
    users: int = 0
    """Threads that hold it or wait for it."""
    holder: int = 0
    """The thread that holds it, or held it last."""


class KeyedLocks:
    """Serialises work on one pod while work on others goes on.

    Args:
        hanging: says what a thread hangs in, for messages; "" while it does not.
    """

    def __init__(self, hanging: Callable[[int], str] = lambda thread: "") -> None:
        self._hanging = hanging
        self._guard = threading.Lock()
        self._locks: dict[Hashable, _Lock] = {}

    @contextmanager
    def __call__(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of a key; the same thread may take it again.

        Raises:
            Unavailable: the thread that holds it hangs in a plugin.
        """
        with self._guard:
            entry = self._locks.setdefault(key, _Lock())
            entry.users += 1
        try:
            self._acquire(entry)
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._locks[key]

    def _acquire(self, entry: _Lock) -> None:
        while not entry.lock.acquire(timeout=_LOOK):
            if why := self._hanging(entry.holder):
                raise Unavailable(f"earlier work on this pod is not done: {why}")
        entry.holder = threading.get_ident()
