"""Telling observers what was committed, on a thread of its own, in order."""

import logging
import math
from collections import deque

from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.lifecycle.context import Listener
from virtlet.core.store.records import PodRecord
from virtlet.errors import VirtletError
from virtlet.model.event import Event
from virtlet.threads import Worker

log = logging.getLogger(__name__)

QUEUE_LIMIT = 10_000
"""Events that may wait for a slow observer before new ones are dropped, with a log line."""


class EventTeller:
    """Calls `virtlet_event` so that no observer can delay or break what it observes."""

    def __init__(self, hooks: Hooks, profiles: Profiles) -> None:
        self._hooks = hooks
        self._profiles = profiles
        self._queue: deque[tuple[Event, str]] = deque()
        self._listeners: list[Listener] = []
        self._worker = Worker("events", self._tell_queued, drain=True)

    def start(self) -> None:
        """Begin to tell."""
        self._worker.start()

    def stop(self, patience: float = 5.0) -> None:
        """Tell what waits, then end; waits at most `patience` seconds for a slow observer."""
        self._worker.stop(patience)

    def listen(self, listener: Listener) -> None:
        """Have a part of the core called at every event, on the thread that made the change."""
        self._listeners.append(listener)

    def tell(self, event: Event, handler: str, removed: PodRecord | None = None) -> None:
        """Queue an event for a handler's observers; returns at once.

        Args:
            event: what was committed.
            handler: whose observers hear of it.
            removed: the last record of a pod that is not in the store any more.
        """
        for listener in self._listeners:
            try:
                listener(event, removed)
            except Exception:
                # The change is committed: whoever made it must not take it for failed.
                log.exception("listener failed", extra={"event": event.kind.value})
        if len(self._queue) >= QUEUE_LIMIT:
            log.error("event dropped: an observer is too slow", extra={"event": event.kind.value})
            return
        self._queue.append((event, handler))
        self._worker.wake()

    def _tell_queued(self) -> float:
        while self._queue:
            event, handler = self._queue.popleft()
            try:
                profile = self._profiles.get(handler)
            except VirtletError:
                continue  # The handler was taken out of the configuration: nobody observes it.
            self._hooks.event(profile, event)
        return math.inf
