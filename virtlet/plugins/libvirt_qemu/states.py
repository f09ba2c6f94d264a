"""libvirt's states, reasons and events as ours.

Source: virDomainState, virDomainShutoffReason, virDomainEventType and the virDomainEvent*DetailType
enumerations of libvirt's domain API.
"""

from collections.abc import Callable

import libvirt

from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import VmExit
from virtlet.plugins.libvirt_qemu.runs import now

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
