"""Start-up: making the node and the store agree after a crash or a restart.

What was half done is undone, what was asked to go goes, what runs is followed again. Only what
carries our instance, or lies in our own directories, is ever touched.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from attrs import evolve

from virtlet.core.lifecycle import (
    backends,
    checkpoints,
    exits,
    guest_mounts,
    hibernation,
    pods,
    resize,
    saved_start,
    vms,
)
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import HIBERNATED, RUNNING, START
from virtlet.core.paths import Paths
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.errors import UndoIncomplete, VirtletError
from virtlet.host import netns
from virtlet.host.files import remove_tree
from virtlet.model.hypervisor import Hypervisor

log = logging.getLogger(__name__)

CONSOLE_PATIENCE = 0.2
"""Seconds that start-up waits for the console logs of ended VMs; they take milliseconds, unless
their disk is full."""
UNDO_PATIENCE = 10.0
"""Seconds that start-up waits for what is undone: a plugin's inverse may hang, and holds up its own
pod alone. Who asks for that pod meanwhile is told so by the lock."""
_UNDONE_AT_ONCE = 8
RESIZE_PATIENCE = 2.0
"""Seconds that start-up waits for VMs whose resize or checkpoint was cut short; a guest may be
slow."""


def recover(context: Context, patience: float = UNDO_PATIENCE) -> None:
    """Run every step; one that fails is logged, and its pod is left for the kubelet's retry.

    Args:
        context: the manager.
        patience: seconds to wait for pods of which something is undone.
    """
    undone = [pod for pod in context.store.pods.values() if _is_to_be_undone(context, pod)]
    apart = {pod.pod.id for pod in undone}
    for vm in context.store.vms.values():
        if vm.vm.pod.id not in apart:
            _try(f"VM {vm.vm.id}", lambda vm=vm: _recover_vm(context, vm))  # type: ignore[misc]
    _undo(context, undone, patience)
    for plugin, hypervisor in context.hypervisors.all.items():
        _try(f"domains of {plugin}", lambda h=hypervisor: _remove_orphaned_domains(context, h))  # type: ignore[misc]
    _try("image store", context.images.store.collect)
    _put_back(context)
    completing = threading.Thread(
        target=_complete_consoles, args=(context,), name="recovered-consoles", daemon=True
    )
    completing.start()
    completing.join(CONSOLE_PATIENCE)


def _is_to_be_undone(context: Context, record: PodRecord) -> bool:
    """Whether recovering a pod may call inverses of plugins; else it is a matter of memory."""
    network = record.network
    lost = network and network.netns and not netns.exists(network.netns)
    phases = {vm.phase for vm in context.store.vms_of(record.pod.id)}
    return bool(
        lost
        or pods.is_half_restored(context, record)
        or record.phase is not PodPhase.READY
        or phases - {VmPhase.RUNNING, VmPhase.CREATED}
    )


def _undo(context: Context, records: Sequence[PodRecord], patience: float) -> None:
    """Recover pods beside each other, each under its lock; go on without those that take long."""
    waiting: queue.SimpleQueue[PodRecord] = queue.SimpleQueue()
    for record in records:
        waiting.put(record)
    broke_off: list[BaseException] = []

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                record = waiting.get_nowait()
                try:
                    _undo_pod(context, record)
                except BaseException as error:
                    broke_off.append(error)
                    raise

    threads = [
        threading.Thread(target=work, name=f"recovery-{number}", daemon=True)
        for number in range(min(_UNDONE_AT_ONCE, len(records)))
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if broke_off:
        raise broke_off[0]
    if any(thread.is_alive() for thread in threads):
        log.error(
            "recovery goes on beside", extra={"problem": f"not done within {patience:g} seconds"}
        )


def _undo_pod(context: Context, record: PodRecord) -> None:
    with context.locks(record.pod.id):
        for vm in context.store.vms_of(record.pod.id):
            _try(f"VM {vm.vm.id}", lambda vm=vm: _recover_vm(context, vm))  # type: ignore[misc]
        _try(f"pod {record.pod.id}", lambda: _recover_pod(context, record))


def _recover_vm(context: Context, record: VmRecord) -> None:
    vm_id = record.vm.id
    match record.phase:
        case VmPhase.CREATING:
            context.journal.undo(vm_id)
            context.store.delete_vm(vm_id)
        case VmPhase.STARTING:
            context.journal.undo(vm_id, START)
            context.store.put_vm(evolve(record, phase=VmPhase.CREATED))
        case VmPhase.RUNNING:
            context.consoles.follow(record.vm)
            backends.follow(context, vm_id)
            exits.look_again(context, vm_id, console=False)
            guest_mounts.watch(context, vm_id)
            if saved_start.is_incomplete(context, record):
                saved_start.keep_completing(context, vm_id)
        case VmPhase.HIBERNATED:
            context.consoles.follow(record.vm)
            hibernation.set_right(context, record)
        case VmPhase.EXITED:
            # A start that failed may have left an emulator.
            context.journal.undo(vm_id, {RUNNING, HIBERNATED})
            exits.let_go_of_volumes(context, record.vm)
        case VmPhase.REMOVING:
            vms.remove_vm(context, vm_id)
        case VmPhase.CREATED:
            pass


def _recover_pod(context: Context, record: PodRecord) -> None:
    pod_id = record.pod.id
    phase = record.phase
    if phase is not PodPhase.CREATING and pods.is_half_restored(context, record):
        phase = PodPhase.REMOVING
    match phase:
        case PodPhase.CREATING:
            try:
                context.journal.undo(pod_id)
            except UndoIncomplete:
                pods.show_leftover(context, record)
                raise
            context.store.delete_pod(pod_id)
        case PodPhase.NOT_READY:
            pods.stop_pod(context, pod_id)
        case PodPhase.REMOVING:
            pods.remove_pod(context, pod_id)
        case PodPhase.READY:
            network = record.network
            if network and network.netns and not netns.exists(network.netns):
                log.warning("pod lost its network namespace: stopped", extra={"pod": pod_id})
                pods.stop_pod(context, pod_id)


def _put_back(context: Context) -> None:
    """Have VMs again as their records say, also those whose hypervisor is away for now."""
    records = list(context.store.vms.values())
    unsettled = [each.vm.id for each in records if checkpoints.is_unsettled(context, each)]
    resizing = [each.vm.id for each in records if each.resizing]
    threads = [checkpoints.keep_settling(context, vm_id) for vm_id in unsettled]
    threads += [resize.keep_putting_back(context, vm_id) for vm_id in resizing]
    deadline = time.monotonic() + RESIZE_PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _complete_consoles(context: Context) -> None:
    """Write what is left of the consoles of ended VMs."""
    for record in context.store.vms.values():
        if record.phase is VmPhase.EXITED:
            vm = record.vm
            _try(f"console of VM {vm.id}", lambda vm=vm: context.consoles.finish(vm))  # type: ignore[misc]


def _remove_orphaned_domains(context: Context, hypervisor: Hypervisor) -> None:
    for vm_id in set(hypervisor.list()) - set(context.store.vms):
        log.warning("removing a domain of ours that no VM is stored for", extra={"vm": vm_id})
        _try(f"domain of VM {vm_id}", lambda vm_id=vm_id: hypervisor.remove(vm_id))  # type: ignore[misc]


def remove_orphaned_directories(store: Store, paths: Paths) -> None:
    """Remove the directories of pods and VMs that are not stored.

    The store must be that of the data directory (`ownership.py`).
    """
    vm_ids = set(store.vms)
    places = (
        (paths.pods, set(store.pods)),
        (paths.vms, vm_ids),
        (paths.vm_runtimes, {paths.vm_runtime(vm_id).name for vm_id in vm_ids}),
    )
    for parent, known in places:
        for path in parent.iterdir() if parent.is_dir() else ():
            if path.name not in known:
                log.warning("removing an orphaned directory", extra={"path": str(path)})
                _try(f"directory {path}", lambda path=path: remove_tree(path))  # type: ignore[misc]


def _try(what: str, step: Callable[[], object]) -> None:
    try:
        step()
    except VirtletError as error:
        log.error("recovery step failed", extra={"subject": what, "problem": str(error)})
    except Exception:
        log.exception("recovery step failed", extra={"subject": what})
