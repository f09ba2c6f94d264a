"""libvirt's events become observations, told in order on a thread of their own.

Events alone are not enough. A driver that starts, and finds the emulator of a VM gone, sends no
event, and it finds out only some time after it has answered the first call. So the watch also
compares all domains by itself: often after a connection was made, and less often later.
"""

import contextlib
import logging
import math
import queue
import time
from collections.abc import Callable
from typing import Any

import libvirt
from attrs import evolve, frozen

from virtlet.errors import Unavailable, VirtletError
from virtlet.model.hypervisor import DomainCallback, DomainState, Observation
from virtlet.model.vm import VmExit
from virtlet.plugins.libvirt_qemu.domain_endings import OomWatch, RunRecords, exit_by_event
from virtlet.plugins.libvirt_qemu.domains import DomainStates, canonical
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

_LOOKS = (0.5, 60.0)
"""Seconds between the first two looks after a connection was made, and at most."""

REBOOTED = -1
"""An event beside those of libvirt's lifecycle, which a reboot is none of."""

_LIVE = (DomainState.RUNNING, DomainState.PAUSED)
_COUNTED = (
    libvirt.VIR_DOMAIN_EVENT_STARTED,
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED,
)
"""Events that count each. At all others the domain is looked at as it is then."""


@frozen
class DomainEvent:
    """One lifecycle event of a domain, ours or not."""

    vm_id: str
    name: str
    event: int
    detail: int


Handler = Callable[[DomainEvent, DomainCallback], None]


class DomainWatch:
    """Takes events from libvirt's thread, which must never wait, and handles them on its own.

    Args:
        handle: called with each event and the subscriber.
        look: compares what there is with what was told.
    """

    def __init__(self, handle: Handler, look: Callable[[DomainCallback | None], None]) -> None:
        self._handle = handle
        self._look = look
        self._pauses = BackOff(*_LOOKS, jitter=0.0)
        self._next_look = math.inf
        self._subscriber: DomainCallback | None = None
        self._events: queue.SimpleQueue[DomainEvent | Callable[[], None]] = queue.SimpleQueue()
        self._waiting: set[DomainEvent] = set()
        """Those of the queue that stand for all like them: an emulator may send thousands."""
        self._worker = Worker("domain-watch", self._handle_queued, drain=True)

    def subscribe(self, callback: DomainCallback) -> None:
        """Set the subscriber; before `start`."""
        self._subscriber = callback

    def start(self) -> None:
        """Start handling; idempotent."""
        self._worker.start()

    def stop(self) -> None:
        """Handle what is queued and end; idempotent."""
        self._worker.stop()

    def register(self, connection: Any) -> Callable[[], None]:
        """Have a connection's events come here, until the returned function is called."""
        register = connection.domainEventRegisterAny
        numbers = (
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._take, None),
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._take_reboot, None),
        )

        def deregister() -> None:
            with contextlib.ExitStack() as each:  # a dead connection lets go of it, and raises
                for number in numbers:
                    each.callback(connection.domainEventDeregisterAny, number)

        return deregister

    def connected(self) -> None:
        """A connection was made: look now, and again soon."""
        self._put(self._look_soon)

    def tell(self, work: Callable[[DomainCallback], None]) -> None:
        """Have something else told to the subscriber, in order with the events."""

        def told() -> None:
            if self._subscriber is not None:
                work(self._subscriber)

        self._put(told)

    def _take(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: None) -> None:
        vm_id = canonical(domain.UUIDString())
        seen = DomainEvent(vm_id, domain.name(), event, detail)
        if event not in _COUNTED:
            if seen in self._waiting:
                return
            self._waiting.add(seen)
        self._put(seen)

    def _take_reboot(self, connection: Any, domain: Any, _opaque: None) -> None:
        self._take(connection, domain, REBOOTED, 0, None)

    def _put(self, item: DomainEvent | Callable[[], None]) -> None:
        self._events.put(item)
        self._worker.wake()

    def _look_soon(self) -> None:
        self._pauses.reset()
        self._look_once()

    def _look_once(self) -> None:
        self._next_look = time.monotonic() + self._pauses.pause()
        with contextlib.suppress(Unavailable):  # the next connection looks again
            self._look(self._subscriber)

    def _handle_queued(self) -> float:
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle_one(self._events.get_nowait())
        if time.monotonic() >= self._next_look and not self._worker.stopping:
            self._handle_one(self._look_once)
        return self._next_look - time.monotonic()

    def _handle_one(self, item: DomainEvent | Callable[[], None]) -> None:
        try:
            if callable(item):
                item()
                return
            self._waiting.discard(item)  # first: one that comes now is handled after this one
            if self._subscriber is not None:
                self._handle(item, self._subscriber)
        except VirtletError as error:
            # The next look compares all domains, so nothing is lost for good.
            log.warning("domain event not told", extra={"problem": str(error)})
        except Exception:
            log.exception("domain event not told")


class DomainChanges:
    """Keeps what the subscriber heard last, and tells it what is new, on the watch's thread.

    Args:
        runs: where ends are recorded.
        states: what there is now.
        emulator: process id of a running domain's emulator.
        by_signal: whether a signal ended the emulator of the domain with this name.
    """

    def __init__(
        self,
        runs: RunRecords,
        states: DomainStates,
        emulator: Callable[[str], int | None],
        by_signal: Callable[[str], bool],
    ) -> None:
        self._runs = runs
        self._states = states
        self._emulator = emulator
        self._by_signal = by_signal
        self._oom = OomWatch()
        self._told: dict[str, Observation] = {}
        self._signalled: set[str] = set()
        """Domains whose emulator was told to end by a signal."""
        self._ended: set[str] = set()
        """Domains found ended at the last look; an event may still come and say how."""

    def on_event(self, seen: DomainEvent, tell: DomainCallback) -> None:
        """Take note of one event."""
        match seen.event:
            case libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
                if seen.detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST:
                    self._signalled.add(seen.vm_id)
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._on_stopped(seen, tell)
            case libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
                self._told.pop(seen.vm_id, None)
                self._signalled.discard(seen.vm_id)
            case libvirt.VIR_DOMAIN_EVENT_STARTED:
                # Only now is it certain to have joined its cgroups.
                self._note_emulator(seen.vm_id)
                self._tell_live(seen.vm_id, tell)
            case event if event == REBOOTED:
                observation = self._states.one(seen.vm_id, None)
                if observation is not None and observation.state in _LIVE:
                    tell(evolve(observation, rebooted=True))
            case _:
                self._tell_live(seen.vm_id, tell)

    def notice(self, vm_id: str, topic: str, text: str, tell: DomainCallback) -> None:
        """Tell what the owner of a VM that runs should know."""
        seen = self._states.one(vm_id, None)
        if seen is not None and seen.state in _LIVE:
            tell(evolve(seen, notice=text, topic=topic))

    def _tell_live(self, vm_id: str, tell: DomainCallback) -> None:
        observation = self._states.one(vm_id, None)
        if observation is not None and observation.state is not DomainState.STOPPED:
            self._tell(observation, tell)

    def _lives(self, vm_id: str) -> bool:
        with contextlib.suppress(VirtletError):
            observation = self._states.one(vm_id, None)
            return observation is not None and observation.state in _LIVE
        return False

    def _note_emulator(self, vm_id: str) -> None:
        pid = self._emulator(vm_id)
        if pid is not None:
            self._oom.begin(vm_id, pid)

    def look(self, tell: DomainCallback | None) -> None:
        """Tell what no event told; the first time everything is new."""
        current = self._states.all(None)
        for vm_id in set(self._told) - set(current):
            before = self._told.pop(vm_id)
            if tell and before.state in _LIVE:
                gone = VmExit(
                    exit_code=255,
                    reason="Error",
                    message="libvirt does not know the VM any more",
                    finished_at=time.time_ns(),
                )
                tell(Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=gone))
        for observation in current.values():
            settled = self._settled(observation)
            if settled is not None:
                self._tell(settled, tell)
        self._ended &= set(current)

    def _settled(self, seen: Observation) -> Observation | None:
        """What can be told; an end without a record is left to its event until the next look."""
        if seen.state is not DomainState.STOPPED or seen.exit is not None:
            self._ended.discard(seen.vm_id)
            return seen
        if seen.vm_id in self._ended:
            return self._states.one(seen.vm_id, 0.0)
        self._ended.add(seen.vm_id)
        return None

    def _on_stopped(self, seen: DomainEvent, tell: DomainCallback) -> None:
        signalled = seen.vm_id in self._signalled
        self._signalled.discard(seen.vm_id)
        out_of_memory = self._oom.end(seen.vm_id)
        if not self._runs.begun(seen.vm_id):
            return  # not ours, or a start that failed and was reported as such
        if self._lives(seen.vm_id):
            return  # this was the run before: the domain has been started again
        how = exit_by_event(
            seen.detail,
            lambda: self._by_signal(seen.name),
            signalled=signalled,
            out_of_memory=out_of_memory,
        )
        how = self._runs.end(seen.vm_id, how)
        self._tell(Observation(vm_id=seen.vm_id, state=DomainState.STOPPED, exit=how), tell)

    def _tell(self, observation: Observation, tell: DomainCallback | None) -> None:
        before = self._told.get(observation.vm_id)
        if before == observation:
            return
        self._told[observation.vm_id] = observation
        if observation.state is DomainState.RUNNING and (
            before is None or before.state not in _LIVE
        ):
            self._note_emulator(observation.vm_id)
        if tell:
            tell(observation)
