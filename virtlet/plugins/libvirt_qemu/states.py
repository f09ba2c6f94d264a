"""libvirt's states, reasons and events as ours.

Source: virDomainState, virDomainShutoffReason, virDomainEventType and the virDomainEvent*DetailType
enumerations of libvirt's domain API.
"""

from collections.abc import Callable, Mapping
from typing import Any

import libvirt

from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.vm import VmExit
from virtlet.plugins.libvirt_qemu.domains import Domains, missing_is_fine
from virtlet.plugins.libvirt_qemu.endings import Runs, now

BySignal = Callable[[], bool]
"""Says whether the emulator told its log that a signal ended it."""

COMPLETED = (0, "Completed", "the guest powered off")
FORCED = (137, "Error", "ended by force")
PANICKED = (1, "Error", "the guest's kernel panicked")
EMULATOR_DIED = (137, "Error", "the emulator died under the running guest")
SIGNALLED = (143, "Error", "the emulator was told to end by a signal from the node")
OUT_OF_MEMORY = (137, "OOMKilled", "the node's kernel killed the emulator: out of memory")
UNSEEN = (255, "Error", "the VM ended while the hypervisor was away; how is not known")
_START_FAILED = (128, "StartError", "the emulator did not start")
_MIGRATED = (255, "Error", "the domain was moved or saved by somebody else")

_BY_SHUTOFF_REASON = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: COMPLETED,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: FORCED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: EMULATOR_DIED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: _MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: _MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: _MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: _START_FAILED,
}
_BY_STOP_EVENT = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: COMPLETED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: FORCED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: PANICKED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: EMULATOR_DIED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: _MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: _MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: _MIGRATED,
}
_LIVE = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    # The guest has powered off; the emulator still writes out what it holds.
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    # Panicked, and kept for a look instead of ended: its CPUs stand still.
    libvirt.VIR_DOMAIN_CRASHED: DomainState.PAUSED,
}

EVENT_DELAY = 0.5
"""Seconds that the event of an end may come after the state: it knows better how a VM ended."""


def live_state(state: int, reason: int) -> DomainState | None:
    """Our state of a domain that has an emulator, None for one that is shut off."""
    starting = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
    if (state, reason) == starting:
        return DomainState.RUNNING  # nobody paused it
    return _LIVE.get(state)


def exit_by_reason(reason: int, by_signal: BySignal) -> VmExit:
    """How a domain ended, from the reason libvirt gives for its being shut off.

    Args:
        reason: libvirt's.
        by_signal: asked when the emulator died.
    """
    how = _BY_SHUTOFF_REASON.get(reason, UNSEEN)
    return _exit(SIGNALLED if how is EMULATOR_DIED and by_signal() else how)


def exit_by_event(
    detail: int, by_signal: BySignal, *, signalled: bool, out_of_memory: bool
) -> VmExit:
    """How a domain ended, from the detail of its "stopped" event.

    Args:
        detail: the event's.
        by_signal: asked when the emulator died: libvirt may have heard of the end before the
            shutdown.
        signalled: the shutdown before it came from the node, not from the guest.
        out_of_memory: the kernel's OOM killer was in the emulator's cgroup.
    """
    how = _BY_STOP_EVENT.get(detail, UNSEEN)
    if how is COMPLETED and signalled:
        how = SIGNALLED
    if how is EMULATOR_DIED and out_of_memory:
        how = OUT_OF_MEMORY
    elif how is EMULATOR_DIED and by_signal():
        how = SIGNALLED
    return _exit(how)


def forced() -> VmExit:
    """How a domain ends that we end."""
    return _exit(FORCED)


def _exit(how: tuple[int, str, str]) -> VmExit:
    code, reason, message = how
    return VmExit(exit_code=code, reason=reason, message=message, finished_at=now())


# What libvirt knows of our domains, as observations.


class Sight:
    """Looks at domains.

    How a VM ended is what its record says. Where there is none yet, its event is given some
    seconds (`patience`) to write it, and then the state's reason has to do; with no patience at
    all (None) the observation has no `exit`.

    Args:
        domains: where they are found.
        runs: where ends are recorded.
        by_signal: whether a signal ended the emulator of the domain with this name.
    """

    def __init__(self, domains: Domains, runs: Runs, by_signal: Callable[[str], bool]) -> None:
        self._domains = domains
        self._runs = runs
        self._by_signal = by_signal

    def one(self, vm_id: str, patience: float | None = EVENT_DELAY) -> Observation | None:
        """One of our domains now, or None."""
        with self._domains.call(f"look at VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                return None
            with missing_is_fine():
                return self._observation(vm_id, domain, patience)
            return None

    def all(self, patience: float | None = EVENT_DELAY) -> Mapping[str, Observation]:
        """All of ours."""
        found: dict[str, Observation] = {}
        with self._domains.call("list VMs") as connection:
            for vm_id, domain in self._domains.all(connection):
                with missing_is_fine():
                    found[vm_id] = self._observation(vm_id, domain, patience)
        return found

    def _observation(self, vm_id: str, domain: Any, patience: float | None) -> Observation:
        state, reason = domain.state()
        live = live_state(state, reason)
        if live is not None:
            return Observation(vm_id=vm_id, state=live)
        if not self._runs.begun(vm_id):
            return Observation(vm_id=vm_id, state=DomainState.DEFINED)
        ended = self._runs.wait_for_end(vm_id, patience or 0.0)
        if ended is None and patience is not None:
            how = exit_by_reason(reason, lambda: self._by_signal(domain.name()))
            ended = self._runs.end(vm_id, how)
        return Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=ended)
