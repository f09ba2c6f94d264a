"""libvirt's events become observations, told in order on a thread of their own.

Events alone do not tell everything. A driver that starts, and finds the emulator of a VM gone,
says so to nobody, and it finds out only some time after it has answered our first question. So
the watch also looks by itself: often after a connection was made, and then now and then.
"""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
from attrs import frozen

from virtlet.errors import Unavailable, VirtletError
from virtlet.model.hypervisor import DomainCallback
from virtlet.plugins.libvirt_qemu.mark import canonical

log = logging.getLogger(__name__)

_LOOKS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between the looks after a connection was made."""
_LATER_LOOKS = 60.0


@frozen
class DomainEvent:
    """One lifecycle event of a domain, ours or not."""

    vm_id: str
    name: str
    event: int
    detail: int


Handler = Callable[[DomainEvent, DomainCallback], None]


class Watch:
    """Takes events from libvirt's thread, which must never wait, and handles them on its own.

    Args:
        handle: called with each event and the subscriber.
        look: compares what there is with what was told.
    """

    def __init__(self, handle: Handler, look: Callable[[DomainCallback | None], None]) -> None:
        self._handle = handle
        self._look = look
        self._pauses: Iterator[float] = itertools.repeat(_LATER_LOOKS)
        self._next_look = float("inf")
        self._subscriber: DomainCallback | None = None
        self._events: queue.SimpleQueue[DomainEvent | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def subscribe(self, callback: DomainCallback) -> None:
        """Set who is told; before `start`."""
        self._subscriber = callback

    def start(self) -> None:
        """Start handling; idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="domain-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Handle what is queued and end; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._events.put(None)
            thread.join()

    def register(self, connection: Any) -> Callable[[], None]:
        """Have a connection's events come here, until the returned function is called."""
        number = connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._take, None
        )
        return lambda: connection.domainEventDeregisterAny(number)

    def connected(self) -> None:
        """A connection was made: look now, and again soon."""
        self._events.put(self._look_soon)

    def _take(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: None) -> None:
        vm_id = canonical(domain.UUIDString())
        self._events.put(DomainEvent(vm_id, domain.name(), event, detail))

    def _look_soon(self) -> None:
        self._pauses = itertools.chain(_LOOKS, itertools.repeat(_LATER_LOOKS))
        self._look_once()

    def _look_once(self) -> None:
        self._next_look = time.monotonic() + next(self._pauses)
        with contextlib.suppress(Unavailable):  # there will be another connection, and a look
            self._look(self._subscriber)

    def _run(self) -> None:
        while True:
            try:
                left = self._next_look - time.monotonic()
                item = self._events.get(timeout=max(0.0, min(left, _LATER_LOOKS)))
            except queue.Empty:
                item = self._look_once if time.monotonic() >= self._next_look else _nothing
            if item is None:
                return
            try:
                if callable(item):
                    item()
                elif self._subscriber is not None:
                    self._handle(item, self._subscriber)
            except VirtletError as error:
                # The next look compares all domains, so nothing is lost for good.
                log.warning("domain event not told", extra={"problem": str(error)})
            except Exception:
                log.exception("domain event not told")


def _nothing() -> None:
    """Nothing to do yet."""
