"""Changing what a VM may use, while it runs or before it starts.

What a limit means for the machine is the flavor's to say: it is chosen again from the new limits,
as it was when the VM was made, and the hypervisor is asked for the difference.

From before the first step until a commit or an undo, the VM's record says what is being changed.
Each step is an effect in the journal: when one fails, those before it are undone by the table
`effects.UNDO`. What a crash, or an undo that fails, leaves is put back as soon as that is possible,
by a resize to what is on record.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import evolve, fields

from virtlet.core.lifecycle import backends
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.machines import domain_document, fitted
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.lifecycle.refusals import check_groups, check_values, not_now
from virtlet.core.store.records import EffectRow, VmPhase, VmRecord, decode
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import cgroups, cpus
from virtlet.host.processes import set_oom_score_adj
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor, Resize
from virtlet.model.resources import Resources
from virtlet.model.vm import Machine
from virtlet.threads import BackOff

log = logging.getLogger(__name__)

DEFINITION = "resize-definition"
LIMITS = "resize-limits"
OOM_SCORE = "resize-oom-score"
MACHINE = "resize-machine"
RESIZE = frozenset({DEFINITION, LIMITS, OOM_SCORE, MACHINE})
"""The effects of a resize, until it is committed."""

PAUSES = (0.5, 15.0)
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
        wanted = merged(record.resources, change)
        check_values(record, change, wanted)
        if record.machine is None or record.stopping:
            raise not_now(record)
        context.hypervisors.require(record.hypervisor)
        if record.phase is VmPhase.CREATED:
            _resize_created(context, record, record.machine, change, wanted)
        elif record.phase is VmPhase.RUNNING:
            notice = _resize_running(context, record, record.machine, change, wanted)
        else:
            raise not_now(record)
    if notice:
        # Not under the lock: the log's disk may be slow.
        tell_owner(context, vm, notice, "Resize")


def put_back(context: Context, vm_id: str) -> None:
    """Put a VM's resources in force again where a resize was cut short; idempotent.

    Raises:
        FailedPrecondition: its guest has come to use what it was given; try again later.
        Unavailable: the hypervisor is away; likewise.
        UndoIncomplete: a step could not be undone; likewise.
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
            context.journal.undo(vm_id, {DEFINITION})
            _write(context, record, "vm-resize-undone", None)
        elif record.phase is VmPhase.RUNNING:
            _resize_running(context, record, record.machine, Resources(), record.resources)


def keep_putting_back(context: Context, vm_id: str) -> threading.Thread:
    """Put a VM's resources in force again on a thread."""
    return keep_trying(context, vm_id, lambda: put_back(context, vm_id))


def keep_trying(context: Context, vm_id: str, deed: Callable[[], None]) -> threading.Thread:
    """Put something of a VM in order again on a thread.

    It tries until it has done so, nothing is left to do, or the manager ends.
    """

    def run() -> None:
        back_off = BackOff(*PAUSES)
        pause = 0.0
        while not context.closing.wait(pause):
            try:
                deed()
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
    vm_id, plugin = vm.id, record.hypervisor
    with _resizing(context, record, change):
        context.journal.perform(
            vm_id, DEFINITION, lambda: hypervisor.define(sized, document), plugin=plugin
        )
        resized = evolve(record, machine=sized, resources=wanted, resizing=None)
        context.journal.commit(
            "vm-resized", lambda: context.store.put_vm(resized, struck_out=RESIZE)
        )


def undo_definition(context: Context, row: EffectRow) -> None:
    """Define a VM that was not started as its record says."""
    record = context.store.vms[row.owner]
    if record.phase is VmPhase.CREATED and record.machine is not None:
        hypervisor = context.hypervisors.named(row.plugin)
        document = domain_document(context.hooks, hypervisor, record.machine)
        hypervisor.define(record.machine, document)


@contextmanager
def _resizing(context: Context, record: VmRecord, change: Resources) -> Iterator[None]:
    """Write down what the block changes; when it fails, undo that at once or later."""
    unsettled, vm_id = record.resizing, record.vm.id

    def settle() -> None:
        # What an earlier resize has left of a machine that runs is still to be put back.
        if unsettled is None or record.phase is VmPhase.CREATED:
            _write(context, record, "vm-resize-undone", None)

    def go_on() -> None:
        # What an earlier resize has left is being put back already.
        if unsettled is None:
            keep_putting_back(context, vm_id)

    with context.journal.undone_on_error(vm_id, then=settle, otherwise=go_on):
        _write(context, record, "vm-resizing", merged(unsettled or Resources(), change))
        yield


def _write(context: Context, record: VmRecord, what: str, resizing: Resources | None) -> None:
    def change(known: VmRecord) -> VmRecord | None:
        # A VM that ended meanwhile has nothing to put back.
        pointless = known.phase is not record.phase or known.resizing == resizing
        return None if pointless else evolve(known, resizing=resizing)

    struck_out = frozenset() if resizing else RESIZE
    context.journal.commit(
        what, lambda: context.store.change_vm(record.vm.id, change, struck_out=struck_out)
    )


def merged(now: Resources, change: Resources) -> Resources:
    """The resources after a change: what it leaves unset stays."""
    values = {field.name: getattr(change, field.name) for field in fields(Resources)}
    return evolve(now, **{name: value for name, value in values.items() if value})


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
    check_groups(record, groups, limits)
    changed = merged(record.resizing or Resources(), change)
    difference = _difference(context, record, machine, changed, wanted)
    hypervisor = context.hypervisors.named(record.hypervisor)
    journal, before = context.journal, Resize()
    with _resizing(context, record, change):
        # The groups first: threads cannot be put on CPUs that their group does not have.
        if record.resizing:
            journal.undo(vm.id, {LIMITS, OOM_SCORE})
        journal.perform(
            vm.id,
            LIMITS,
            lambda: cgroups.change_limits(groups, limits),
            record=dict[str, str],
            before=cgroups.held(groups, limits),
        )
        if changed.oom_score_adj:
            journal.perform(
                vm.id,
                OOM_SCORE,
                lambda: _set_oom_score_adj(context, hypervisor, vm.id, wanted.oom_score_adj),
                record=int,
                before=record.resources.oom_score_adj,
            )
        if difference != Resize():
            before = journal.perform(
                vm.id,
                MACHINE,
                lambda: hypervisor.resize(vm.id, difference),
                plugin=record.hypervisor,
                record=Resize,
                unchanged=FailedPrecondition,
            )
        _commit(context, record, wanted)
    log.info("VM resized", extra={"vm": vm.id})
    if machine.accelerator != "kvm" and (before.vcpus or 0) < (difference.vcpus or 0):
        return (
            f"the VM was given {difference.vcpus} vCPUs while it runs, after {before.vcpus}: "
            "without KVM a Linux guest uses only those that it started with, so that a higher CPU "
            "limit may change nothing; to use them, run the pod again with that limit, or on a "
            "node with KVM"
        )
    return ""


def undo_limits(context: Context, row: EffectRow) -> None:
    """Have the control groups of a VM that runs hold again what they held."""
    if row.record and _runs(context, row):
        cgroups.put_back(decode(row.record, dict[str, str]))


def undo_oom_score(context: Context, row: EffectRow) -> None:
    """Give the emulator of a VM that runs the score again that it had."""
    if row.record and _runs(context, row):
        hypervisor = context.hypervisors.named(context.store.vms[row.owner].hypervisor)
        _set_oom_score_adj(context, hypervisor, row.owner, decode(row.record, int))


def undo_machine(context: Context, row: EffectRow) -> None:
    """Give a machine that runs what it had; where that is unknown, what is on record."""
    record = context.store.vms[row.owner]
    if record.machine is None or not _runs(context, row):
        return
    context.hypervisors.require(row.plugin)
    if row.record:
        before = decode(row.record, Resize)
    else:
        changed = record.resizing or Resources()
        before = _difference(context, record, record.machine, changed, record.resources)
    context.hypervisors.named(row.plugin).resize(row.owner, before)


def _runs(context: Context, row: EffectRow) -> bool:
    """Whether there is something to put back: not of a VM that has ended, or is removed."""
    return context.store.vms[row.owner].phase is VmPhase.RUNNING


def _set_oom_score_adj(context: Context, hypervisor: Hypervisor, vm_id: str, value: int) -> None:
    backends.set_score(context, vm_id, value)
    pid = hypervisor.process(vm_id)
    if pid is None or not set_oom_score_adj(pid, value):
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
    if placed is not None and machine.flavor.dedicated_cpus:
        if placed != cpus.cpuset(machine.vm.config.resources.cpuset_cpus):
            raise FailedPrecondition(
                f"VM {record.vm.name} cannot have other CPUs without a restart: each of its vCPUs "
                "has one for itself; run the pod again"
            )
        placed = None
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


def _commit(context: Context, record: VmRecord, wanted: Resources) -> None:
    """Write the new values down, unless the VM has just ended."""

    def change(known: VmRecord) -> VmRecord | None:
        runs = known.phase is VmPhase.RUNNING
        return evolve(known, resources=wanted, resizing=None) if runs else None

    vm, store = record.vm, context.store
    if not context.journal.commit(
        "vm-resized", lambda: store.change_vm(vm.id, change, struck_out=RESIZE)
    ):
        raise FailedPrecondition(f"VM {vm.name} ended while it was resized")
