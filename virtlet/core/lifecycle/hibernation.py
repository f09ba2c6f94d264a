"""Hibernation: a VM's memory goes to disk, its emulator ends, and later it goes on.

Pod, network, disks and control group stay, and so does its record, which says HIBERNATED instead of
RUNNING: nobody takes the end of its emulator for its own. The effect (`effects.HIBERNATED`) has the
memory in the VM's directory. It is undone once the VM runs: at its end, when it goes on, and where
hibernating it failed, and then the guest goes on in the emulator that it has.

Memory that went on once never does so again with a disk that was written since: the effect's record
has what the disk was like.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from virtlet.core.lifecycle import backends, checkpoints, effects, exits, templates
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import HIBERNATED, RUNNING
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, ResourceExhausted, VirtletError
from virtlet.host.files import new_disk_file
from virtlet.model.hypervisor import DomainState, Hypervisor
from virtlet.model.vm import Machine, SavedMemory, VmExit

log = logging.getLogger(__name__)

_MEMORY = "memory"
_MORE = 64 << 20
"""Bytes that a machine's file may take beside its guest's RAM: firmware, screen, devices' state."""
_TELL_TIME = 30.0
"""Seconds that a guest may take to set its clock."""


def hibernate_vm(
    context: Context,
    vm_id: str,
    seconds: float = checkpoints.USUAL_TIME,
    waits: Callable[[], bool] = lambda: True,
) -> None:
    """Put a running VM's memory on disk and end its emulator; nothing to do for a hibernated one.

    Args:
        context: the manager.
        vm_id: which VM.
        seconds: that writing its memory may take.
        waits: whether somebody still waits for it.

    Raises:
        NotFound: no such VM.
        FailedPrecondition: it does not run, has what no file can hold, or it was broken off; it
            runs on.
        ResourceExhausted: there is no space; it runs on.
        Unavailable: the hypervisor is away.
        UndoIncomplete: it is hibernated, and its emulator does not end yet; call again.
    """
    vm = context.store.known_vm(vm_id).vm
    broken_off = checkpoints.breaker(context, vm_id, seconds, waits)
    with checkpoints.alone(context, vm_id, vm.name), context.locks(vm.pod.id):
        record = context.store.known_vm(vm_id)
        if record.phase is VmPhase.HIBERNATED:
            set_right(context, record)
            return
        machine = checkpoints.fit_machine(context, record, "hibernated")
        _check_space(machine)
        try:
            _write(context, record, machine, broken_off)
            context.journal.commit("vm-hibernated", lambda: _commit(context, vm_id))
        except FailedPrecondition as error:
            checkpoints.settle(context, vm_id)
            raise FailedPrecondition(f"VM {vm.name} was not hibernated: {error}") from None
        except Exception:
            checkpoints.settle(context, vm_id)
            raise
        context.journal.undo(vm_id, {RUNNING})
    log.info("VM hibernated", extra={"vm": vm_id})
    state = context.store.known_vm(vm_id).state
    tell_owner(context, vm, f"the VM is {state}", "Hibernated")


def resume_vm(context: Context, vm_id: str) -> None:
    """Have a hibernated VM go on where it stood; nothing to do for one that runs.

    Raises:
        NotFound: no such VM.
        FailedPrecondition: it is neither; or it cannot go on. It is still hibernated then, unless
            its disk was written since: it has ended then.
        Unavailable: the hypervisor is away.
        UndoIncomplete: something of an earlier try is left; call again.
    """
    vm = context.store.known_vm(vm_id).vm
    with context.locks(vm.pod.id):
        record = context.store.known_vm(vm_id)
        if record.phase is VmPhase.HIBERNATED:
            context.hypervisors.require(record.hypervisor)
            set_right(context, record)
            record = context.store.known_vm(vm_id)
        if record.phase is VmPhase.RUNNING:
            return
        if record.phase is not VmPhase.HIBERNATED or record.machine is None:
            raise FailedPrecondition(
                f"VM {vm.name} is {record.phase.value}: a hibernated one can be resumed"
            )
        machine = evolve(record.machine, saved=_saved(context, record, record.machine))
        context.reserve.fill()
        # Its new emulator begins another file.
        context.consoles.finish(vm)
        context.consoles.prepare(vm)
        with context.journal.undone_on_error(vm_id):
            effects.start_emulator(context, record, machine)
            _go_on(context, vm_id)
        checkpoints.settle(context, vm_id)
    log.info("VM resumed", extra={"vm": vm_id})
    # It may have ended before we wrote that it runs.
    exits.look_again(context, vm_id)
    _tell_time(context, vm_id)


def set_right(context: Context, record: VmRecord) -> None:
    """Have a VM that is hibernated run, or have no emulator, where that was cut short.

    The caller holds its pod's lock.
    """
    vm_id = record.vm.id
    rows = [row for row in context.store.effects(vm_id) if row.kind == RUNNING]
    if not rows:
        return
    seen = context.hypervisors.named(record.hypervisor).observe(vm_id)
    if seen is not None and seen.state is DomainState.RUNNING and rows[-1].record:
        # Cut short when it went on already. While it is written, it stands still.
        backends.follow(context, vm_id)
        _go_on(context, vm_id)
        checkpoints.settle(context, vm_id)
    else:
        context.journal.undo(vm_id, {RUNNING})


def end_vm(context: Context, vm_id: str) -> None:
    """Write that a hibernated VM has ended, and let go of its memory; its emulator has ended.

    The caller holds its pod's lock.
    """
    ended = VmExit(
        exit_code=137,
        reason="Error",
        message="ended while it was hibernated: its guest did not run, and could not power off",
        finished_at=time.time_ns(),
    )
    _end(context, vm_id, ended)


def _end(context: Context, vm_id: str, ended: VmExit) -> None:
    exits.mark_exited(context, vm_id, ended, phase=VmPhase.HIBERNATED)
    context.journal.undo(vm_id, {HIBERNATED})


def _check_space(machine: Machine) -> None:
    """Refuse one whose memory may not fit, before its guest is disturbed."""
    most = machine.flavor.memory + _MORE
    free = shutil.disk_usage(machine.vm.directory).free
    if free < most:
        raise ResourceExhausted(
            f"VM {machine.vm.name} cannot be hibernated: its memory may take {most >> 20}Mi of the "
            f"data directory's disk, and {free >> 20}Mi are free: free some space"
        )


def _write(
    context: Context, record: VmRecord, machine: Machine, broken_off: Callable[[], str]
) -> None:
    def write(hypervisor: Hypervisor, directory: Path) -> str:
        with new_disk_file(directory / _MEMORY, -1, -1) as file:
            hypervisor.hibernate(machine, file, broken_off)
            os.fsync(file)
            # The node is to have the memory back.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return _disk(machine)

    effects.hibernate(context, record, write)


def _disk(machine: Machine) -> str:
    """What a root disk is like that nobody writes to; another one once somebody has."""
    status = machine.root.path.stat()
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _commit(context: Context, vm_id: str) -> None:
    def change(record: VmRecord) -> VmRecord | None:
        if record.phase is not VmPhase.RUNNING or record.stopping:
            return None
        return evolve(record, phase=VmPhase.HIBERNATED, paused=False)

    if context.store.change_vm(vm_id, change) is None:
        raise FailedPrecondition("it has ended meanwhile, or is being stopped")


def _go_on(context: Context, vm_id: str) -> None:
    def change(record: VmRecord) -> VmRecord:
        return evolve(record, phase=VmPhase.RUNNING, paused=False, resumes=record.resumes + 1)

    context.journal.commit("vm-resumed", lambda: context.store.change_vm(vm_id, change))


def _saved(context: Context, record: VmRecord, machine: Machine) -> SavedMemory:
    """The memory of a hibernated VM; one that cannot go on any more has ended."""
    vm = record.vm
    path = vm.directory / HIBERNATED / _MEMORY
    told = [effects.disk_of(row) for row in context.store.effects(vm.id) if row.kind == HIBERNATED]
    if told and path.is_file() and told[-1] == _disk(machine):
        return SavedMemory(path=path, offset=0)
    why = "its disk was written since it was hibernated" if path.is_file() else "its memory is gone"
    ended = VmExit(exit_code=255, reason="Lost", message=why, finished_at=time.time_ns())
    _end(context, vm.id, ended)
    raise FailedPrecondition(f"VM {vm.name} cannot go on, and has ended: {why}")


def _tell_time(context: Context, vm_id: str) -> None:
    record = context.store.vms.get(vm_id)
    if record is None or record.phase is not VmPhase.RUNNING or record.machine is None:
        return
    text, argv = "the VM goes on after it was hibernated", ("date", "-u", "-s")
    try:
        templates.run(
            context, record.machine, "set its clock", (*argv, f"@{time.time():.0f}"), _TELL_TIME
        )
    except VirtletError as error:
        text += f", and its clock could not be set right: {str(error)[:300]}"
    tell_owner(context, record.vm, text, "Resumed")
