"""Resizes that are refused: what cannot be, and what was refused a moment ago.

A kubelet repeats a resize that was refused every second, until the pod's owner asks for another.
What was refused a moment ago is refused again without looking at VM, guest and node, and one line
of the log is enough for all of it.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path

from attrs import evolve, frozen

from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError
from virtlet.host import cgroups, cpus
from virtlet.model.resources import Resources

AGAIN = 10.0
"""Seconds until a refused resize is tried again: as often as a guest tells of its memory."""
_KEPT = 3600.0
"""Seconds that a reason which nobody asks for any more is known as logged."""
_NUMBER = re.compile(r"\d+")


def check_values(record: VmRecord, change: Resources, wanted: Resources) -> None:
    """Refuse values that no VM on this node can have, or that this one cannot without a restart.

    Raises:
        InvalidArgument, FailedPrecondition: so it is.
    """
    cpus.check_time(wanted.cpu_quota, change.cpu_period, "linux")
    if change.cpuset_cpus:
        cpus.cpuset(change.cpuset_cpus)
    if change.cpuset_mems:
        cpus.memset(change.cpuset_mems)
    if change.hugepage_limits and _huge(change) != _huge(record.resources):
        raise FailedPrecondition(
            f"VM {record.vm.name} cannot have other huge pages without a restart: leave their "
            "limits as they are, or run the pod again"
        )


def _huge(resources: Resources) -> dict[str, int]:
    """Huge pages that may be used; a limit of 0 is none, as no limit is."""
    return {size: limit for size, limit in resources.hugepage_limits.items() if limit}


def check_groups(record: VmRecord, groups: tuple[Path, ...], limits: Resources) -> None:
    """Refuse new limits that nothing would enforce; CPUs are, by the hypervisor too."""
    now = record.resources
    unlimited = limits.cpu_quota in (-1, now.cpu_quota)
    new = evolve(
        limits,
        cpu_quota=0 if unlimited else limits.cpu_quota,
        cpu_shares=0 if limits.cpu_shares == now.cpu_shares else limits.cpu_shares,
        cpuset_mems="" if limits.cpuset_mems == now.cpuset_mems else limits.cpuset_mems,
        cpuset_cpus="",
    )
    lacking = cgroups.unenforced(groups, new)
    if lacking:
        parent = record.vm.pod.config.cgroup_parent
        raise FailedPrecondition(
            f"VM {record.vm.name}: nothing here can hold its {' and '.join(lacking)}: below the "
            f"pod's cgroup_parent {parent!r} the VM has no control group that does"
        )


def not_now(record: VmRecord) -> FailedPrecondition:
    """The refusal of a VM that neither runs nor is yet to be started."""
    stopping = record.phase is VmPhase.RUNNING and record.stopping
    state = "being stopped" if stopping else record.state
    return FailedPrecondition(
        f"VM {record.vm.name} is {state} and cannot be resized: a new attempt starts with the "
        "limits it is given"
    )


@frozen
class _Refusal:
    change: Resources
    record: VmRecord | None
    """As it was afterwards: a changed one may be worth another try."""
    error: type[VirtletError] | None
    """None if the next try may end in another way."""
    text: str
    until: float


class Refusals:
    """The last refused resize of each VM.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, _Refusal] = {}

    def check(self, vm_id: str, record: VmRecord | None, change: Resources) -> None:
        """Refuse what was refused a moment ago.

        Raises:
            FailedPrecondition, InvalidArgument: as then.
        """
        with self._lock:
            last = self._last.get(vm_id)
        if last is None or last.error is None or last.record != record:
            return
        if last.change == change and self._clock() < last.until:
            error = last.error(last.text)
            error.repeated = True
            raise error

    def remember(
        self, vm_id: str, record: VmRecord | None, change: Resources, error: VirtletError
    ) -> None:
        """A resize was refused; marks the error as repeated if its reason is that of before."""
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
        kind = type(error) if type(error) in (FailedPrecondition, InvalidArgument) else None
        now = self._clock()
        refusal = _Refusal(change, record, kind, text, now + AGAIN)
        with self._lock:
            last = self._last.get(vm_id)
            # A figure in it may be another at every try.
            if last is not None and _NUMBER.sub("", last.text) == _NUMBER.sub("", text):
                error.repeated = True
            kept = {name: r for name, r in self._last.items() if now < r.until + _KEPT}
            kept[vm_id] = refusal
            self._last = kept

    def forget(self, vm_id: str) -> None:
        """A resize succeeded, or the VM is gone."""
        with self._lock:
            self._last.pop(vm_id, None)
