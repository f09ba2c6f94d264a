"""The start of a VM that goes on where that of a checkpoint stood (`restores.py`).

Each start begins with the disk as it was, because one that was cut short may have let the guest
run. Once the VM runs and its guest was told, the copies of memory and disk go.

A guest that takes a new identity does so within the start, which has failed if it cannot. Until
then it has another's MAC addresses, and what it sends from them is dropped by its pod's filter.
"""

import logging
import threading
import time

from virtlet.core.checkpoint_archive import DISK
from virtlet.core.lifecycle import effects, guest_hold, templates
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import SAVED
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import DeadlineExceeded, Unavailable, UndoIncomplete, VirtletError
from virtlet.host.files import new_disk_file
from virtlet.model.vm import Machine

log = logging.getLogger(__name__)

TELL_TIME = 30.0
"""Seconds that a guest may take to set its clock, and as many for its network."""
COPY_TIME = 60.0
"""Seconds that a guest may take to become another one."""


def start(context: Context, record: VmRecord, machine: Machine) -> None:
    """Start the emulator of a restored VM, with the disk as it was when its memory was.

    Raises:
        VirtletError: it did not start, or its guest does not take the identity that it is to have.
    """
    source = machine.vm.directory / effects.SAVED / DISK
    with new_disk_file(machine.root.path, *context.node.user_of(machine.vm)) as file:
        templates.copy(source, file)
    context.journal.reached("saved:disk-put-back")
    effects.start_emulator(context, record, machine)
    if machine.saved is not None and machine.saved.renamed is not None:
        templates.run(context, machine, "set its clock", _clock(), TELL_TIME)
        command = guest_hold.copy(machine.saved.renamed)
        templates.run(context, machine, "take a new identity", command, COPY_TIME)
        context.journal.reached("saved:renewed")


def complete(context: Context, vm_id: str, *, told: bool = False) -> None:
    """Set right what a guest that goes on cannot know, and take away what it went on from.

    Args:
        context: the manager.
        vm_id: which VM.
        told: its guest knows already; to tell it once more changes nothing.
    """
    record = context.store.vms.get(vm_id)
    if record is None or record.phase is not VmPhase.RUNNING:
        return
    if not told:
        _tell_guest(context, record)
    context.journal.reached("saved:told")
    with context.locks(record.vm.pod.id):
        if vm_id in context.store.vms:
            try:
                context.journal.undo(vm_id, {SAVED})
            except UndoIncomplete as error:  # It goes with the VM.
                log.warning("checkpoint's copy stays", extra={"vm": vm_id, "problem": str(error)})


def keep_completing(context: Context, vm_id: str) -> None:
    """As `complete`, on a thread, for a VM whose start was cut short at its end."""
    threading.Thread(target=complete, args=(context, vm_id), name="restored", daemon=True).start()


def is_incomplete(context: Context, record: VmRecord) -> bool:
    """Whether a VM runs whose guest was not told yet that it goes on."""
    return record.phase is VmPhase.RUNNING and any(
        row.kind == SAVED for row in context.store.effects(record.vm.id)
    )


def _clock() -> tuple[str, ...]:
    return "date", "-u", "-s", f"@{time.time():.0f}"


def _tell_guest(context: Context, record: VmRecord) -> None:
    machine = record.machine
    assert machine is not None
    commands = {
        "clock": _clock(),
        "network": guest_hold.move(len(machine.network.nics)),
    }
    for what, argv in commands.items():
        try:
            templates.run(context, machine, f"set its {what}", argv, TELL_TIME)
        except VirtletError as error:
            tell_owner(
                context,
                record.vm,
                f"the guest goes on from a checkpoint, and its {what} could not be set right: "
                f"{str(error)[:300]}",
                "RestoredHalf",
            )
            if isinstance(error, Unavailable | DeadlineExceeded):
                return  # It would not answer now either.
