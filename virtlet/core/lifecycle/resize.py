"""Changing what a VM may use, while it runs or before it starts.

What a limit means for the machine is the flavor's to say: it is chosen again from the new limits,
as it was when the VM was made, and the hypervisor is asked for the difference.

A resize is written down before its first step, and struck out when it is committed or undone. What
a crash, or an undo that fails, leaves of one is put back as soon as that goes.
"""

import logging
import threading
from typing import Any

from attrs import evolve

from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.machines import domain_document, fitted
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.lifecycle.resize_steps import Steps, merged
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import cgroups, cpus
from virtlet.host.processes import set_oom_score_adj
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor, Resize
from virtlet.model.resources import Resources
from virtlet.model.vm import Machine
from virtlet.threads import BackOff

log = logging.getLogger(__name__)

RETRIES = (0.5, 15.0)
"""Seconds until what a resize left is put back again: at first, and at most."""


def resize_vm(context: Context, vm_id: str, change: Resources) -> None:
    """Change what a VM may use; idempotent, and all of it or nothing.

    Args:
        context: the manager.
        vm_id: which VM.
        change: what is to be; a field that is unset stays as it is.

    Raises:
        NotFound: no such VM.
        InvalidArgument: a value that no VM on this node can have.
        FailedPrecondition: the VM has ended, or it cannot have that without a restart.
        Unavailable: the hypervisor is away.
    """
    vm, notice = context.store.known_vm(vm_id).vm, ""
    with context.locks(vm.pod.id):
        record = context.store.known_vm(vm_id)
        if change == Resources():
            return
        now = record.resources
        wanted = merged(now, change)
        _check(change, wanted)
        if change.hugepage_limits and _huge(change) != _huge(now):
            raise FailedPrecondition(
                f"VM {vm.name} cannot have other huge pages without a restart: leave their limits "
                "as they are, or run the pod again"
            )
        if record.machine is None or record.stopping:
            raise _not_now(record)
        context.hypervisors.require(record.hypervisor)
        if record.phase is VmPhase.CREATED:
            _resize_created(context, record, record.machine, change, wanted)
        elif record.phase is VmPhase.RUNNING:
            notice = _resize_running(context, record, record.machine, change, wanted)
        else:
            raise _not_now(record)
    if notice:
        # Not under the lock: the log's disk may be slow.
        tell_owner(context, vm, notice)


def put_back(context: Context, vm_id: str) -> None:
    """Put a VM's resources in force again where a resize was cut short; idempotent.

    Raises:
        FailedPrecondition: its guest has come to use what it was given; try again later.
        Unavailable: the hypervisor is away; likewise.
    """
    known = context.store.vms.get(vm_id)
    if known is None:
        return
    with context.locks(known.vm.pod.id):
        record = context.store.vms.get(vm_id)
        if record is None or record.resizing is None or record.machine is None or record.stopping:
            return
        context.hypervisors.require(record.hypervisor)
        if record.phase is VmPhase.CREATED:
            _redefine(context, record, record.machine)
            context.journal.commit(
                "vm-resize-undone", lambda: context.store.put_vm(evolve(record, resizing=None))
            )
        elif record.phase is VmPhase.RUNNING:
            now = record.resources
            _resize_running(context, record, record.machine, Resources(), now)


def keep_putting_back(context: Context, vm_id: str) -> threading.Thread:
    """Put a VM's resources in force again on a thread.

    It tries until it has done so, nothing is left to do, or the manager ends.
    """

    def run() -> None:
        back_off = BackOff(*RETRIES)
        pause = 0.0
        while not context.closing.wait(pause):
            try:
                put_back(context, vm_id)
                return
            except VirtletError as error:
                problem = {"vm": vm_id, "problem": str(error)}
                log.warning("VM not yet as its record says", extra=problem)
            except Exception:
                log.exception("VM not yet as its record says", extra={"vm": vm_id})
            pause = back_off.pause()

    thread = threading.Thread(target=run, name=f"put-back-{vm_id[:12]}", daemon=True)
    thread.start()
    return thread


def _resize_created(
    context: Context, record: VmRecord, machine: Machine, change: Resources, wanted: Resources
) -> None:
    """Define the machine again, with the size that the new limits ask for."""
    vm = machine.vm
    chosen = _flavor(context, record, wanted)
    hypervisor = context.hypervisors.named(record.hypervisor)
    sized = evolve(
        machine,
        # The disks are made for the other properties of the first flavor.
        flavor=evolve(
            machine.flavor,
            vcpus=chosen.vcpus,
            memory=chosen.memory,
            max_vcpus=chosen.max_vcpus,
            max_memory=chosen.max_memory,
        ),
        vm=evolve(vm, config=evolve(vm.config, resources=wanted)),
    )
    sized = fitted(sized, wanted, hypervisor)
    document = domain_document(context.hooks, hypervisor, sized)
    steps = Steps(context, record, change, {})
    try:
        steps.intend()
        try:
            hypervisor.define(sized, document)
        finally:
            steps.done("resize-definition", lambda: _redefine(context, record, machine))
        resized = evolve(record, machine=sized, resources=wanted, resizing=None)
        context.journal.commit("vm-resized", lambda: context.store.put_vm(resized))
    except Exception as error:
        _undo(context, record, steps, error)
        raise


def _huge(resources: Resources) -> dict[str, int]:
    """Huge pages that may be used; a limit of 0 is none, as no limit is."""
    return {size: limit for size, limit in resources.hugepage_limits.items() if limit}


def _redefine(context: Context, record: VmRecord, machine: Machine) -> None:
    hypervisor = context.hypervisors.named(record.hypervisor)
    hypervisor.define(machine, domain_document(context.hooks, hypervisor, machine))


def _resize_running(
    context: Context, record: VmRecord, machine: Machine, change: Resources, wanted: Resources
) -> str:
    """Change the VM's control groups and its machine, and write that down.

    Returns:
        What the pod's owner should know of it, or "".
    """
    vm = record.vm
    groups = cgroups.find(vm.pod.config.cgroup_parent, vm.id)
    limits = _limits(change, wanted)
    _check_groups(record, groups, limits)
    held = cgroups.held(groups, limits)
    steps = Steps(context, record, change, held)
    changed = steps.resizing.change
    difference = _difference(context, record, machine, changed, wanted)
    hypervisor = context.hypervisors.named(record.hypervisor)
    before = Resize()
    try:
        steps.intend()
        # The groups first: threads cannot be put on CPUs that their group does not have.
        left = record.resizing.limits if record.resizing else {}
        cgroups.put_back({file: was for file, was in left.items() if file not in held})
        cgroups.change_limits(groups, limits)
        steps.done("resize-limits", lambda: cgroups.put_back(held))
        if changed.oom_score_adj:
            now = record.resources
            _set_oom_score_adj(hypervisor, vm.id, wanted.oom_score_adj)
            steps.done(
                "resize-oom-score",
                lambda: _set_oom_score_adj(hypervisor, vm.id, now.oom_score_adj),
            )
        if difference != Resize():
            try:
                before = hypervisor.resize(vm.id, difference)
            except Exception as error:
                if not isinstance(error, FailedPrecondition):
                    steps.doubt()
                raise
            steps.done("resize-machine", lambda: hypervisor.resize(vm.id, before))
        context.journal.commit("vm-resized", lambda: _write(context, record, wanted))
    except Exception as error:
        _undo(context, record, steps, error)
        raise
    log.info("VM resized", extra={"vm": vm.id})
    if machine.accelerator != "kvm" and (before.vcpus or 0) < (difference.vcpus or 0):
        return (
            f"the VM was given {difference.vcpus} vCPUs while it runs, after {before.vcpus}: "
            "without KVM a Linux guest uses only those that it started with, so that a higher CPU "
            "limit may change nothing; to use them, run the pod again with that limit, or on a "
            "node with KVM"
        )
    return ""


def _set_oom_score_adj(hypervisor: Hypervisor, vm_id: str, value: int) -> None:
    consumed = hypervisor.stats().get(vm_id)
    if consumed is None or consumed.pid is None or not set_oom_score_adj(consumed.pid, value):
        log.info("oom_score_adj not set", extra={"vm": vm_id})


def _difference(
    context: Context, record: VmRecord, machine: Machine, changed: Resources, wanted: Resources
) -> Resize:
    """What of the running machine has to change, or may have to.

    Raises:
        FailedPrecondition: it cannot without a restart.
    """
    chosen = _flavor(context, record, wanted)
    now = record.resources
    memory = None
    # A kubelet sends all limits with every change. Where memory's is as before, so is the memory.
    if changed.memory_limit and (record.resizing or wanted.memory_limit != now.memory_limit):
        memory = machine.flavor.memory
        # Without a limit, or with the first one, it has what it started with.
        if wanted.memory_limit not in (0, machine.vm.config.resources.memory_limit):
            sized = evolve(machine, flavor=evolve(machine.flavor, memory=chosen.memory))
            sized = fitted(sized, wanted, context.hypervisors.named(record.hypervisor))
            memory = sized.flavor.memory
    most = max(machine.flavor.memory, machine.flavor.max_memory)
    if memory is not None and memory > most:
        raise FailedPrecondition(
            f"VM {record.vm.name} cannot have {memory >> 20}Mi of memory without a restart: it "
            f"started with {machine.flavor.memory >> 20}Mi and can grow to {most >> 20}Mi; run "
            "the pod again, and see the flavor's max_memory"
        )
    placed = None
    if changed.cpuset_cpus:
        cpuset = wanted.cpuset_cpus
        placed = cpus.cpuset(cpuset) if cpuset else cpus.everywhere()
    follows = machine.flavor.max_vcpus > 1 and (changed.cpu_quota or changed.cpu_period)
    return Resize(vcpus=chosen.vcpus if follows else None, memory=memory, cpus=placed)


def _flavor(context: Context, record: VmRecord, wanted: Resources) -> Flavor:
    vm = record.vm
    config = evolve(vm.config, resources=wanted)
    return context.hooks.flavor(vm.pod, config, vm.image)


def _limits(change: Resources, wanted: Resources) -> Resources:
    """What of a change control groups hold; quota and period belong together."""
    both = bool(change.cpu_quota or change.cpu_period)
    return Resources(
        cpu_quota=wanted.cpu_quota if both else 0,
        cpu_period=wanted.cpu_period if both else 0,
        cpu_shares=change.cpu_shares,
        cpuset_cpus=change.cpuset_cpus,
        cpuset_mems=change.cpuset_mems,
    )


def _check(change: Resources, wanted: Resources) -> None:
    """Refuse values that no VM on this node can have."""
    cpus.check_time(wanted.cpu_quota, change.cpu_period, "linux")
    if change.cpuset_cpus:
        cpus.cpuset(change.cpuset_cpus)
    if change.cpuset_mems:
        cpus.memset(change.cpuset_mems)


def _check_groups(record: VmRecord, groups: tuple[Any, ...], limits: Resources) -> None:
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
    lacking = cgroups.homeless(groups, new)
    if lacking:
        parent = record.vm.pod.config.cgroup_parent
        raise FailedPrecondition(
            f"VM {record.vm.name}: nothing here can hold its {' and '.join(lacking)}: below the "
            f"pod's cgroup_parent {parent!r} the VM has no control group that does"
        )


def _write(context: Context, record: VmRecord, wanted: Resources) -> None:
    """Write the new values down, unless the VM has just ended."""
    changed = context.store.change_vm(
        record.vm.id,
        lambda r: (
            evolve(r, resources=wanted, resizing=None) if r.phase is VmPhase.RUNNING else None
        ),
    )
    if changed is None:
        raise FailedPrecondition(f"VM {record.vm.name} ended while it was resized")


def _undo(context: Context, record: VmRecord, steps: Steps, error: Exception) -> None:
    """Undo the steps that were done, at once or later."""
    steps.undo(error)
    known = context.store.vms.get(record.vm.id)
    # What is left of an earlier resize is being put back already.
    if known and known.resizing and not record.resizing:
        keep_putting_back(context, record.vm.id)


def _not_now(record: VmRecord) -> FailedPrecondition:
    stopping = record.phase is VmPhase.RUNNING and record.stopping
    state = "being stopped" if stopping else record.phase.value
    return FailedPrecondition(
        f"VM {record.vm.name} is {state} and cannot be resized: a new attempt starts with the "
        "limits it is given"
    )
