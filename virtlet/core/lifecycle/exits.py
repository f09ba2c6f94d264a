"""How the end of a VM becomes known, whoever ends it."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor

from attrs import evolve

from virtlet.core.lifecycle import backends, guest_mounts
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import event_of, tell_of_resets, tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import ResourceExhausted, VirtletError
from virtlet.host.mounts import unmount_below
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.vm import Vm, VmExit
from virtlet.threads import BackOff, OrderedExecutor

log = logging.getLogger(__name__)

PAUSES = (0.1, 5.0)
"""Seconds until what a hypervisor reported is written again: at first, and at most."""


def forced_exit() -> VmExit:
    """How a VM ends that did not react to the power button, or was not asked."""
    return VmExit(
        exit_code=137,
        reason="Error",
        message="ended by force",
        finished_at=time.time_ns(),
    )


def lost_exit() -> VmExit:
    """How a VM ended whose emulator went away while nobody watched."""
    return VmExit(
        exit_code=255,
        reason="Lost",
        message="the emulator was gone when the manager looked again; how it ended is not known",
        finished_at=time.time_ns(),
    )


def reports(context: Context, threads: Executor) -> Callable[[Observation], None]:
    """A callback for hypervisors that reports a change on a thread of ours, and returns at once.

    Reports of one VM are taken in order: a pause and its end must not swap. Other VMs do not wait:
    an end is written after the VM's console, whose disk may be slow. A hypervisor reports a change
    once, so what cannot be written is tried again until the manager ends; the next start looks at
    all VMs.
    """
    in_order = OrderedExecutor(threads)

    def note(seen: Observation) -> None:
        back_off = BackOff(*PAUSES)
        while True:
            try:
                on_change(context, seen)
                return
            except VirtletError as error:
                extra = {"vm": seen.vm_id, "problem": str(error)}
                log.error("change of a VM not written yet", extra=extra)
            except Exception:
                log.exception("change of a VM not written yet", extra={"vm": seen.vm_id})
            if context.closing.wait(back_off.pause()):
                return

    return lambda seen: in_order.submit(seen.vm_id, lambda: note(seen))


def on_change(context: Context, seen: Observation) -> None:
    """Take note of a change that the hypervisor reports."""
    if seen.state is DomainState.STOPPED:
        context.reserve.release()
        record = context.store.vms.get(seen.vm_id)
        if record is not None and record.resumes:
            # It may be late, and of an emulator that ended when the VM was hibernated.
            look_again(context, seen.vm_id)
        else:
            mark_exited(context, seen.vm_id, seen.exit or lost_exit())
    elif seen.state in (DomainState.PAUSED, DomainState.RUNNING):
        if seen.rebooted:
            context.rebooted.add(seen.vm_id)
            guest_mounts.watch(context, seen.vm_id, rebooted=True)
            tell_of_resets(context, seen.vm_id)
        _note_pause(context, seen.vm_id, seen.state is DomainState.PAUSED)
        record = context.store.vms.get(seen.vm_id)
        if seen.notice and record is not None and record.phase is VmPhase.RUNNING:
            tell_owner(context, record.vm, seen.notice, seen.topic)


def _note_pause(context: Context, vm_id: str, paused: bool) -> None:
    """Write whether a VM is paused; on a full disk, which pauses VMs, it is left unwritten.

    The reserve is for what ends pods: VMs that write again would soon use it up.
    """

    def change(record: VmRecord) -> VmRecord | None:
        if record.phase is not VmPhase.RUNNING or record.paused == paused:
            return None
        return evolve(record, paused=paused)

    try:
        context.store.change_vm(vm_id, change)
    except ResourceExhausted as error:
        log.warning("pause not noted", extra={"vm": vm_id, "problem": str(error)})


def look_again(context: Context, vm_id: str, *, console: bool = True) -> None:
    """Compare a running VM with what the hypervisor sees; for `console` see `mark_exited`."""
    record = context.store.vms.get(vm_id)
    if record is None or record.phase is not VmPhase.RUNNING:
        return
    seen = context.hypervisors.named(record.hypervisor).observe(vm_id)
    if seen is None or seen.state in (DomainState.DEFINED, DomainState.STOPPED):
        ended = seen.exit if seen else None
        mark_exited(context, vm_id, ended or lost_exit(), console=console)
    else:
        on_change(context, seen)


def mark_exited(
    context: Context,
    vm_id: str,
    ended: VmExit,
    *,
    console: bool = True,
    phase: VmPhase = VmPhase.RUNNING,
) -> None:
    """Write that a running VM has ended, once its console is in the log as far as it can be.

    Args:
        context: the manager.
        vm_id: which VM.
        ended: how it ended.
        console: False when the caller completes the console itself, and does not wait for it.
        phase: the one in which it may be now; the ends of others are known, or to come.
    """
    record = context.store.vms.get(vm_id)
    if record is None or record.phase is not phase:
        return
    if console:
        _complete_console(context, record.vm)

    def end(current: VmRecord) -> VmRecord | None:
        if current.phase is not phase:
            return None
        at = ended.finished_at or time.time_ns()
        done = evolve(ended, finished_at=max(at, current.started_at))
        return evolve(current, phase=VmPhase.EXITED, exit=done, paused=False, resizing=None)

    let_go_of_volumes(context, record.vm)
    if _commit_end(context, "vm-exited", record.vm, end, ended):
        log.info("VM ended", extra={"vm": vm_id, "reason": ended.reason, "problem": ended.message})


def mark_start_failed(context: Context, vm: Vm, why: str) -> None:
    """Write that a VM did not start: the next try is another attempt."""
    ended = VmExit(exit_code=128, reason="StartError", message=why, finished_at=time.time_ns())

    def end(current: VmRecord) -> VmRecord | None:
        if current.phase not in (VmPhase.STARTING, VmPhase.RUNNING):
            return None
        return evolve(current, phase=VmPhase.EXITED, exit=ended, resizing=None)

    _commit_end(context, "vm-failed", vm, end, ended)
    # Not before: after a crash, a start that is not written as failed is tried again.
    let_go_of_volumes(context, vm)
    _complete_console(context, vm)


def let_go_of_volumes(context: Context, vm: Vm) -> None:
    """End what serves the volumes of a VM that will not run again, and unmount them.

    A kubelet takes a pod's volumes away as soon as its containers are reported as ended, and not
    when they are removed.
    """
    try:
        backends.end(context, vm.id)
        unmount_below(vm.directory)
    except VirtletError as error:
        log.error("volumes stay in use", extra={"vm": vm.id, "problem": str(error)})


def wait_for_exit(context: Context, vm_id: str, timeout: float) -> bool:
    """Wait until a VM runs no more.

    Args:
        context: the manager.
        vm_id: which VM.
        timeout: seconds.

    Returns:
        Whether it has ended.
    """

    def ended() -> bool:
        record = context.store.vms.get(vm_id)
        return record is None or record.phase is not VmPhase.RUNNING

    with context.changed:
        return context.changed.wait_for(ended, timeout)


def _commit_end(
    context: Context,
    what: str,
    vm: Vm,
    end: Callable[[VmRecord], VmRecord | None],
    how: VmExit,
) -> bool:
    """Write and tell that a VM has ended, unless somebody else did; returns whether we did."""
    with context.order:
        if not context.journal.commit(what, lambda: context.store.change_vm(vm.id, end)):
            return False
        event = event_of(vm, EventKind.VM_STOPPED, reason=how.reason, message=how.message)
        context.events.tell(event, vm.pod.profile.handler)
    with context.changed:
        context.changed.notify_all()
    return True


def _complete_console(context: Context, vm: Vm) -> None:
    try:
        context.consoles.finish(vm)
    except VirtletError as error:
        log.error("console not complete", extra={"vm": vm.id, "problem": str(error)})
