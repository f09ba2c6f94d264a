"""What happens to our domains, told to the subscriber; all of it on the watch's thread."""

import contextlib
from collections.abc import Callable

import libvirt

from virtlet.errors import VirtletError
from virtlet.model.hypervisor import DomainCallback, DomainState, Observation
from virtlet.model.vm import VmExit
from virtlet.plugins.libvirt_qemu import states
from virtlet.plugins.libvirt_qemu.oom import OomWatch
from virtlet.plugins.libvirt_qemu.runs import Runs, now
from virtlet.plugins.libvirt_qemu.sight import Sight
from virtlet.plugins.libvirt_qemu.watch import DomainEvent

_LIVE = (DomainState.RUNNING, DomainState.PAUSED)


class Changes:
    """Keeps what the subscriber heard last, and tells it what is new.

    Args:
        runs: where ends are recorded.
        sight: what there is now.
        emulator: process id of a running domain's emulator.
        by_signal: whether a signal ended the emulator of the domain with this name.
    """

    def __init__(
        self,
        runs: Runs,
        sight: Sight,
        emulator: Callable[[str], int | None],
        by_signal: Callable[[str], bool],
    ) -> None:
        self._runs = runs
        self._sight = sight
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
            case _:
                self._tell_live(seen.vm_id, tell)

    def _tell_live(self, vm_id: str, tell: DomainCallback) -> None:
        observation = self._sight.one(vm_id, None)
        if observation is not None and observation.state is not DomainState.STOPPED:
            self._tell(observation, tell)

    def _lives(self, vm_id: str) -> bool:
        with contextlib.suppress(VirtletError):
            observation = self._sight.one(vm_id, None)
            return observation is not None and observation.state in _LIVE
        return False

    def _note_emulator(self, vm_id: str) -> None:
        pid = self._emulator(vm_id)
        if pid is not None:
            self._oom.begin(vm_id, pid)

    def look(self, tell: DomainCallback | None) -> None:
        """Tell what no event told; the first time everything is new."""
        current = self._sight.all(None)
        for vm_id in set(self._told) - set(current):
            before = self._told.pop(vm_id)
            if tell and before.state in _LIVE:
                gone = VmExit(
                    exit_code=255,
                    reason="Error",
                    message="libvirt does not know the VM any more",
                    finished_at=now(),
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
            return self._sight.one(seen.vm_id, 0.0)
        self._ended.add(seen.vm_id)
        return None

    def _on_stopped(self, seen: DomainEvent, tell: DomainCallback) -> None:
        signalled = seen.vm_id in self._signalled
        self._signalled.discard(seen.vm_id)
        out_of_memory = self._oom.end(seen.vm_id)
        if not self._runs.begun(seen.vm_id):
            return  # not ours, or a start that failed and was reported as such
        if self._lives(seen.vm_id):
            return  # this was the run before: the domain has been started anew
        how = states.exit_by_event(
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
