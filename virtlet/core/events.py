"""Telling observers what was committed, on a thread of its own, in order."""

import contextlib
import logging
import queue
import threading
import time

from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.lifecycle.context import Listener
from virtlet.core.store.records import PodRecord
from virtlet.errors import VirtletError
from virtlet.model.event import Event

log = logging.getLogger(__name__)

QUEUE_LIMIT = 10_000
"""Events that may wait for a slow observer before new ones are dropped, with a log line."""


class EventTeller:
    """Calls `virtlet_event` so that no observer can delay or break what it observes."""

    def __init__(self, hooks: Hooks, profiles: Profiles) -> None:
        self._hooks = hooks
        self._profiles = profiles
        self._queue: queue.Queue[tuple[Event, str] | None] = queue.Queue(QUEUE_LIMIT)
        self._listeners: list[Listener] = []
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """Tell what waits, then end; waits at most `patience` seconds for a slow observer."""
        deadline = time.monotonic() + patience
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=patience)
        self._thread.join(max(0.0, deadline - time.monotonic()))

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
        try:
            self._queue.put_nowait((event, handler))
        except queue.Full:
            log.error("event dropped: an observer is too slow", extra={"event": event.kind.value})

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            event, handler = item
            try:
                profile = self._profiles.get(handler)
            except VirtletError:
                continue  # The handler was taken out of the configuration: nobody observes it.
            self._hooks.event(profile, event)
