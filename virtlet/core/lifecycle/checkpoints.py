"""Checkpoints: a VM's memory and disk in one file, while the VM runs on.

What the hypervisor does in the emulator is an effect (`effects.CHECKPOINT`), which is undone in any
case: `Hypervisor.settle` takes away what a finished checkpoint leaves, and what one has begun.
Where that fails, and after a crash, it is tried until it is done.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import virtlet
from virtlet.core.checkpoint_archive import (
    MOST_SAID,
    START,
    finish,
    free_bytes,
    new_archive,
    new_archive_in,
)
from virtlet.core.checkpoint_encryption import (
    ENCRYPTED,
    read_key,
    require_library,
    sealed_into,
)
from virtlet.core.lifecycle import effects, guest_hold, resize, templates
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import CHECKPOINT, HIBERNATED
from virtlet.core.store.records import PodPhase, VmPhase, VmRecord
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    UndoIncomplete,
    VirtletError,
)
from virtlet.model.disk import Disk, Share
from virtlet.model.hypervisor import Checkpoint
from virtlet.model.vm import Machine, Vm

log = logging.getLogger(__name__)

ASK_TIME = 5.0
"""Seconds that a guest may take to say whether it can be copied."""
USUAL_TIME = 120.0
"""Seconds that a checkpoint may take whose caller does not say."""
_IN_EMULATOR = frozenset({CHECKPOINT, HIBERNATED})
"""The effects that leave something in an emulator."""


def checkpoint_vm(
    context: Context,
    vm_id: str,
    path: Path,
    seconds: float = USUAL_TIME,
    waits: Callable[[], bool] = lambda: True,
    make: Callable[[Path], AbstractContextManager[int]] = new_archive,
    key: bytes | None = None,
) -> None:
    """Write a running VM to a file, which is there whole or not at all.

    Args:
        context: the manager.
        vm_id: which VM.
        path: of the file; nothing may be there.
        seconds: that it may take.
        waits: whether somebody still waits for it.
        make: gives the descriptor of a new file at the path.
        key: what the file is encrypted by.

    Raises:
        NotFound: no such VM.
        InvalidArgument: the path is none.
        AlreadyExists: something is there.
        FailedPrecondition: the VM does not run, has what no checkpoint can hold, or is being
            checkpointed already; or it took too long.
        ResourceExhausted: there is no space.
        Unavailable: the hypervisor is away.
    """
    vm = context.store.known_vm(vm_id).vm
    broken_off = breaker(context, vm_id, seconds, waits)
    with alone(context, vm_id, vm.name), context.locks(vm.pod.id):
        record = context.store.known_vm(vm_id)
        machine = fit_machine(context, record, "checkpointed")
        why_no_copy = _why_no_copy(context, machine)
        with make(path) as written, _plain(vm, written, key, broken_off) as file:
            _check_space({file, written}, path, machine)
            parts = _take(context, record, machine, file, broken_off)
            told = facts(context, record, machine)
            finish(file, parts, {**told, "whyNoCopy": why_no_copy})
    log.info(
        "VM checkpointed",
        extra={"vm": vm_id, "path": str(path), "ms": round(parts.stood_still * 1000)},
    )


def breaker(
    context: Context, vm_id: str, seconds: float, waits: Callable[[], bool]
) -> Callable[[], str]:
    """Says why not to go on with writing a VM's memory, as a clause; "" to go on."""
    deadline = time.monotonic() + seconds

    def broken_off() -> str:
        record = context.store.vms.get(vm_id)
        reasons = {
            "it is being stopped": record is None or record.stopping,
            "the manager ends": context.closing.is_set(),
            "the client went away": not waits(),
            f"it takes longer than {seconds:g} seconds": time.monotonic() > deadline,
        }
        return next((why for why, holds in reasons.items() if holds), "")

    return broken_off


def fit_machine(context: Context, record: VmRecord, aim: str) -> Machine:
    """The machine of a VM whose memory can be written; its emulator has nothing of earlier times.

    Args:
        context: the manager.
        record: of the VM; its pod is locked.
        aim: what is to be done to it, as "checkpointed".

    Raises:
        FailedPrecondition: it does not run, or has what no file can hold.
        Unavailable: the hypervisor is away.
        UndoIncomplete: something of an earlier one is left.
    """
    vm, why = record.vm, unfit(context, record)
    if why or record.machine is None:
        raise FailedPrecondition(f"VM {vm.name} cannot be {aim}: {why}")
    context.hypervisors.require(record.hypervisor)
    # What an earlier one has left, whose undo failed.
    context.journal.undo(vm.id, _IN_EMULATOR)
    return record.machine


def checkpoint_pod(
    context: Context,
    pod_id: str,
    vm_ids: Sequence[str],
    directory: Path,
    seconds: float = USUAL_TIME,
    waits: Callable[[], bool] = lambda: True,
    key_file: Path | None = None,
) -> None:
    """Write a pod's running VM to an empty directory, in which it is whole or not at all.

    Args:
        context: the manager.
        pod_id: which pod.
        vm_ids: its VM, which the caller has to know.
        directory: is there, and has nothing in it.
        seconds: that it may take.
        waits: whether somebody still waits for it.
        key_file: has the key that it is encrypted by.

    Raises:
        NotFound: no such pod.
        InvalidArgument: these are not the pod's VMs, or a path is none.
        FailedPrecondition: one of them does not run, or the directory or the key file is not as it
            has to be; else as `checkpoint_vm`.
        ResourceExhausted: there is no space.
        Unavailable: the hypervisor is away.
    """
    record = context.store.known_pod(pod_id)
    if record.phase is not PodPhase.READY:
        raise FailedPrecondition(f"pod {record.pod.name} is stopped: it has nothing to checkpoint")
    mine = {each.vm.id: each for each in context.store.vms_of(pod_id)}
    if not vm_ids or len(set(vm_ids)) < len(vm_ids):
        raise InvalidArgument("container_ids names no container, or one twice")
    for vm_id in vm_ids:
        if vm_id not in mine:
            raise InvalidArgument(f"container {vm_id} is not one of pod {record.pod.name}")
        if mine[vm_id].phase is not VmPhase.RUNNING:
            raise FailedPrecondition(f"container {vm_id} does not run, but is {mine[vm_id].state}")
    # One VM of a pod runs at a time.
    key = None if key_file is None else read_key(key_file)
    make = new_archive_in if key is None else partial(new_archive_in, name=ENCRYPTED)
    checkpoint_vm(context, vm_ids[0], directory, seconds, waits, make, key)


def _plain(
    vm: Vm, written: int, key: bytes | None, broken_off: Callable[[], str]
) -> AbstractContextManager[int]:
    """The file that the hypervisor writes to: without encryption, the archive itself."""
    if key is None:
        return nullcontext(written)
    require_library()
    return sealed_into(written, key, vm.directory, broken_off)


def _why_no_copy(context: Context, machine: Machine) -> str:
    """Why the guest could not become another one, as a clause; "" if it could.

    It is asked now because nobody can ask it before it goes on.
    """
    if not machine.flavor.guest_agent:
        return "its flavor has no guest agent"
    try:
        templates.run(context, machine, "take a new identity", guest_hold.COPYABLE, ASK_TIME)
    except VirtletError as error:
        return str(error)[:MOST_SAID]
    return ""


@contextmanager
def alone(context: Context, vm_id: str, name: str) -> Iterator[None]:
    """One checkpoint of a VM at a time; another one would wait in vain."""
    with context.order:
        if vm_id in context.checkpointed:
            raise FailedPrecondition(f"VM {name} is being checkpointed: try again when it is done")
        context.checkpointed.add(vm_id)
    try:
        yield
    finally:
        context.checkpointed.discard(vm_id)


def unfit(context: Context, record: VmRecord) -> str:
    """Why a VM has no checkpoint now, as a clause; "" if it may have."""
    machine = record.machine
    if record.phase is not VmPhase.RUNNING or machine is None:
        return f"it does not run, but is {record.state}"
    root, vm = machine.root, record.vm
    held = [volume for volume in machine.volumes if isinstance(volume, Disk | Share)]
    warm = any(row.kind == effects.WARM for row in context.store.effects(vm.id))
    reasons = {
        "it is being stopped": record.stopping,
        "it stands still": record.paused,
        "its resize is not settled yet": record.resizing is not None,
        "it started from a template": warm,
        "it has a TPM, whose state is its own": machine.flavor.tpm,
        "it has vsock, by an address of its own": machine.flavor.vsock,
        f"firmware {machine.flavor.firmware} keeps variables in a file": (
            machine.flavor.firmware != "bios"
        ),
        "its root disk is no overlay of its image": root.backing != vm.image.path
        or root.path.parent != vm.directory,
    }
    if held:
        names = ", ".join(volume.guest_path or "a device" for volume in held)
        return f"it has volumes that are disks or shared directories ({names})"
    return next((why for why, holds in reasons.items() if holds), "")


def _check_space(files: set[int], path: Path, machine: Machine) -> None:
    """Refuse one that may not fit in each of some files, before its guest is disturbed."""
    free = min(free_bytes(file) for file in files)
    most = machine.flavor.memory + machine.root.path.stat().st_blocks * 512
    if len({os.fstat(file).st_dev for file in files}) < len(files):
        most *= 2
    if free < most:
        raise ResourceExhausted(
            f"checkpoint {path} may take {most >> 20}Mi, and {free >> 20}Mi are free: free some "
            "space, or give another directory"
        )


def _take(
    context: Context,
    record: VmRecord,
    machine: Machine,
    file: int,
    broken_off: Callable[[], str],
) -> Checkpoint:
    """Have the hypervisor write the parts, and undo what that did in the emulator."""
    vm = record.vm
    try:
        parts = effects.take_checkpoint(
            context,
            record,
            lambda hypervisor: hypervisor.checkpoint(machine, file, START, broken_off),
        )
    except FailedPrecondition as error:
        settle(context, vm.id)
        raise FailedPrecondition(f"VM {vm.name} was not checkpointed: {error}") from None
    except Exception:
        settle(context, vm.id)
        raise
    settle(context, vm.id)
    context.journal.reached("checkpoint:settled")
    return parts


def settle(context: Context, vm_id: str) -> None:
    """Undo what a checkpoint did in a running VM, now or as soon as that is possible."""
    try:
        context.journal.undo(vm_id, _IN_EMULATOR)
    except UndoIncomplete:  # the journal has logged why
        keep_settling(context, vm_id)


def keep_settling(context: Context, vm_id: str) -> threading.Thread:
    """Settle a VM on a thread, which tries until it has, or the manager ends."""

    def settle_now() -> None:
        known = context.store.vms.get(vm_id)
        if known is None:
            return
        with context.locks(known.vm.pod.id):
            record = context.store.vms.get(vm_id)
            # A hibernated one has the only copy of its memory there.
            if record is not None and record.phase is not VmPhase.HIBERNATED:
                context.journal.undo(vm_id, _IN_EMULATOR)

    return resize.keep_trying(context, vm_id, settle_now)


def is_unsettled(context: Context, record: VmRecord) -> bool:
    """Whether a checkpoint has left something in a VM's emulator."""
    return record.phase is VmPhase.RUNNING and any(
        row.kind in _IN_EMULATOR for row in context.store.effects(record.vm.id)
    )


def facts(context: Context, record: VmRecord, machine: Machine) -> dict[str, Any]:
    """What a manifest says of a VM: whose it is, and all that has to be alike where it goes on."""
    vm, image = record.vm, record.vm.image
    pod = vm.pod.config.metadata
    like = templates.parts_of(context, record.hypervisor, machine)
    return {
        "virtlet": virtlet.__version__,
        "pod": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
        "container": vm.config.metadata.name,
        "image": {
            "id": image.id,
            "format": image.format,
            "name": vm.config.user_image or vm.config.image,
        },
        "nics": [{"mac": nic.mac, "mtu": nic.mtu} for nic in vm.network.nics],
        "machine": {name: value for name, value in like.items() if name != "image"},
    }
