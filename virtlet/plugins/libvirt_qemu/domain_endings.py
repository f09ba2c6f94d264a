"""How a domain ended, and the record of it.

libvirt tells it by the reason of a state and by the detail of an event, the emulator by its log,
and the kernel by a counter of its OOM killer. libvirt forgets the reason when its driver restarts,
and does not tell a guest that panicked from an emulator that was killed, so that each domain has a
small file of its own with what was seen first.

Source: virDomainShutoffReason and virDomainEventStoppedDetailType of libvirt's domain API.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
from attrs import asdict, frozen

from virtlet.host.files import remove_file, write_atomically
from virtlet.model.vm import VmExit

BySignal = Callable[[], bool]
"""Whether the emulator's log says that a signal ended it."""

COMPLETED = (0, "Completed", "the guest powered off")
FORCED = (137, "Error", "ended by force")
PANICKED = (1, "Error", "the guest's kernel panicked")
EMULATOR_DIED = (137, "Error", "the emulator died under the running guest")
FLOODED = (
    137,
    "Error",
    "the emulator was ended: it sent libvirt more than any does that its guest has not taken over",
)
SIGNALLED = (143, "Error", "the emulator was told to end by a signal from the node")
OUT_OF_MEMORY = (137, "OOMKilled", "the node's kernel killed the emulator: out of memory")
UNSEEN = (255, "Error", "the VM ended while the hypervisor was away; how is not known")
_START_FAILED = (128, "StartError", "the emulator did not start")
_MIGRATED = (255, "Error", "the domain was moved or saved by another client of libvirt")

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

_POLL = 0.01
"""Seconds between two looks at a record."""
_CGROUPS = Path("/sys/fs/cgroup")


def exit_by_reason(reason: int, by_signal: BySignal) -> VmExit:
    """How a domain ended, from libvirt's reason for its being shut off.

    Args:
        reason: libvirt's.
        by_signal: called if the emulator died.
    """
    how = _BY_SHUTOFF_REASON.get(reason, UNSEEN)
    return _exit(SIGNALLED if how is EMULATOR_DIED and by_signal() else how)


def exit_by_event(
    detail: int, by_signal: BySignal, *, signalled: bool, out_of_memory: bool
) -> VmExit:
    """How a domain ended, from the detail of its "stopped" event.

    Args:
        detail: the event's.
        by_signal: called if the emulator died: libvirt may have noticed its end before it read
            that of the shutdown.
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
    """How a domain ended that was stopped by force."""
    return _exit(FORCED)


def flooded() -> VmExit:
    """How a domain ended whose emulator was ended for what it sent libvirt."""
    return _exit(FLOODED)


def _exit(how: tuple[int, str, str]) -> VmExit:
    code, reason, message = how
    return VmExit(exit_code=code, reason=reason, message=message, finished_at=time.time_ns())


class RunRecords:
    """The records of all domains.

    Args:
        directory: for them alone; made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def begin(self, vm_id: str) -> None:
        """Record that the domain is being started."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            write_atomically(self._directory / vm_id, b"")

    def end(self, vm_id: str, how: VmExit) -> VmExit:
        """Record how the run ended, unless it is on record.

        Returns:
            What is on record now.
        """
        with self._lock:
            known = self.ended(vm_id)
            if known is None and self.begun(vm_id):
                write_atomically(self._directory / vm_id, json.dumps(asdict(how)).encode())
        return known or how

    def forget(self, vm_id: str) -> None:
        """Drop the record; idempotent."""
        with self._lock:
            remove_file(self._directory / vm_id)

    def begun(self, vm_id: str) -> bool:
        """Whether the domain was started since it was defined."""
        return (self._directory / vm_id).exists()

    def ended(self, vm_id: str) -> VmExit | None:
        """How the run ended, where that was seen."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return VmExit(**json.loads((self._directory / vm_id).read_bytes()))
        return None

    def wait_for_end(self, vm_id: str, timeout: float) -> VmExit | None:
        """As `ended`, after waiting some seconds for the record."""
        deadline = time.monotonic() + timeout
        while (how := self.ended(vm_id)) is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return how


@frozen
class _Count:
    """How many were killed in a cgroup when the emulator started there."""

    file: Path
    killed: int


class OomWatch:
    """Tells an emulator that ran out of memory from one that died otherwise.

    The kernel counts the processes that its OOM killer ended in each memory cgroup: `oom_kill` in
    memory.events (v2) and in memory.oom_control (v1).
    """

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def begin(self, vm_id: str, pid: int) -> None:
        """Read the counter of a running emulator's cgroup."""
        file = _counter(pid)
        killed = _killed(file) if file else None
        if file is not None and killed is not None:
            self._counts[vm_id] = _Count(file, killed)

    def end(self, vm_id: str) -> bool:
        """Whether the counter has grown since; forgets the VM."""
        before = self._counts.pop(vm_id, None)
        if before is None:
            return False
        after = _killed(before.file)
        return after is not None and after > before.killed


def _counter(pid: int) -> Path | None:
    """The file with the counter of the memory cgroup a process is in; see cgroups(7)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    unified = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
        if not controllers:
            unified = _CGROUPS / path.lstrip("/") / "memory.events"
    return unified


def _killed(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
