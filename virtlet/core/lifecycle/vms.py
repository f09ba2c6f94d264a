"""VMs: up and down."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from attrs import evolve

from virtlet.core.lifecycle import (
    effects,
    exits,
    guest_mounts,
    hibernation,
    saved_start,
    warm_start,
)
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.effects import RUNNING, START
from virtlet.core.lifecycle.machines import domain_document, fitted, machine_of, tell_of_shortage
from virtlet.core.lifecycle.notices import (
    commit_pod_stopped,
    commit_vm,
    tell_ineffective,
    tell_of_waiting,
)
from virtlet.core.lifecycle.resize import put_back
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.errors import AlreadyExists, FailedPrecondition, NotFound, PodBroken
from virtlet.model.disk import Share, Volume
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import Image, shown_name
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Machine, Mount, Vm, VmConfig

log = logging.getLogger(__name__)

POWER_BUTTON_INTERVAL = 5.0
"""Seconds between presses: a guest that still boots does not hear the first one."""


Resume = Callable[[VmRecord, Machine], Machine]
"""Has a machine go on from a checkpoint at its start."""


def create_vm(context: Context, pod_id: str, config: VmConfig, resume: Resume | None = None) -> str:
    """Make a VM in a pod, not running, or find the one an earlier, equal call made.

    Args:
        context: the manager.
        pod_id: the pod.
        config: of the VM.
        resume: called with its machine, where it is not to boot.

    Returns:
        The VM's id.

    Raises:
        NotFound: no such pod, or the image is not in the store.
        FailedPrecondition: the pod is not ready, or another VM of it runs.
        AlreadyExists: a VM with the same name and attempt exists and differs.
    """
    with context.locks(pod_id):
        pod = _ready_pod(context, pod_id)
        for other in context.store.vms_of(pod_id):
            if other.vm.config.metadata == config.metadata:
                if other.phase is not VmPhase.CREATING:
                    return _same_vm(other, config)
                context.journal.undo(other.vm.id)
                context.store.delete_vm(other.vm.id)
        context.reserve.fill()
        _make_way(context, pod_id)
        with ExitStack() as held:
            images = [held.enter_context(image) for image in _images(context, config)]
            vm = _make_vm(context, pod, config, images, resume)
    return vm.id


def _make_vm(
    context: Context,
    pod: PodRecord,
    config: VmConfig,
    images: Sequence[Image],
    resume: Resume | None,
) -> Vm:
    vm_id = uuid.uuid4().hex
    directory = context.paths.vm(vm_id)
    image, *others = images
    mounted = [number for number, mount in enumerate(config.mounts) if mount.image]
    assert pod.network is not None
    vm = Vm(
        id=vm_id,
        pod=pod.pod,
        config=config,
        image=evolve(image, path=directory / effects.IMAGE),
        network=pod.network,
        directory=directory,
        created_at=time.time_ns(),
        volume_images=tuple(
            evolve(other, path=directory / effects.volume_role(number))
            for number, other in zip(mounted, others, strict=True)
        ),
    )
    hypervisor = context.hypervisors.plugin_of(pod.pod.profile)
    context.hypervisors.require(hypervisor)
    runs_it = context.hypervisors.named(hypervisor)
    _check_format(context, vm)
    context.hooks.admit_vm(pod.pod, config)
    flavor = context.hooks.flavor(pod.pod, config, image)
    if problem := runs_it.lacks(flavor):
        raise FailedPrecondition(f"VM {vm.name}: {problem}")
    user = context.new_user() if runs_it.runs_as_vm() else None
    vm = evolve(vm, uid=user, gid=user)

    record = VmRecord(vm, VmPhase.CREATING, hypervisor)
    context.journal.commit("vm-creating", lambda: context.store.put_vm(record))
    with context.journal.undone_on_error(vm_id, then=lambda: context.store.delete_vm(vm_id)):
        effects.make_vm_directories(context, vm, images)
        volumes = effects.serve_volumes(context, vm)
        if user is not None and any(_belongs_to_users(volume) for volume in volumes):
            record = evolve(record, vm=evolve(vm, uid=None, gid=None))
            shared = record
            context.journal.commit("vm-shared", lambda: context.store.put_vm(shared))
            effects.give_to_shared_user(context, record.vm, user)
            vm = record.vm
        root = effects.make_root_disk(context, vm, flavor)
        seed = effects.make_seed(context, vm, flavor, volumes)
        effects.give_disks(context, vm, (root, seed, *volumes))
        machine = machine_of(context, vm, hypervisor, flavor, root, volumes, seed)
        machine = fitted(machine, config.resources, runs_it)
        if resume is not None:
            machine = resume(record, machine)
        document = domain_document(context.hooks, runs_it, machine)
        effects.define_domain(context, hypervisor, machine, document)
        created = evolve(record, phase=VmPhase.CREATED, machine=machine)
        commit_vm(
            context, "vm-created", lambda: context.store.put_vm(created), EventKind.VM_CREATED, vm
        )
    return vm


def _belongs_to_users(volume: Volume) -> bool:
    """Whether what a guest writes there is its emulator's user's: another VM is to read it, too."""
    return isinstance(volume, Share) and volume.driver == "9p"


def start_vm(context: Context, vm_id: str) -> None:
    """Start a created VM; nothing to do when it runs already.

    A VM whose start fails is EXITED with reason StartError: the next try is another attempt.

    Raises:
        PodBroken: the pod is no use any more; it is not ready from now on.
        NotFound: no such VM.
        FailedPrecondition: it has ended, its pod is not ready, another VM of the pod runs, or
            the emulator did not start.
    """
    vm = context.store.known_vm(vm_id).vm
    with context.locks(vm.pod.id):
        record = context.store.known_vm(vm_id)
        if record.phase in (VmPhase.RUNNING, VmPhase.HIBERNATED):
            return
        if record.phase is VmPhase.STARTING:
            halt_vm(context, vm_id)
            record = context.store.known_vm(vm_id)
        if record.phase is not VmPhase.CREATED or record.machine is None:
            raise FailedPrecondition(
                f"VM {vm.name} is {record.phase.value} and cannot be started: make a new attempt"
            )
        pod = _ready_pod(context, vm.pod.id)
        context.hypervisors.require(record.hypervisor)
        put_back(context, vm_id)
        context.reserve.fill()
        _make_way(context, vm.pod.id, vm_id)

        starting = evolve(record, phase=VmPhase.STARTING, resizing=None)
        context.journal.commit("vm-starting", lambda: context.store.put_vm(starting))
        with context.journal.undone_on_error(vm_id):
            try:
                effects.follow_console(context, vm)
                effects.make_cgroup(context, starting)
                why_cold = _start(context, starting, record.machine)
                now = time.time_ns()
                # What it has gone on from is no matter of its next checkpoint.
                machine = evolve(record.machine, saved=None)
                running = evolve(starting, phase=VmPhase.RUNNING, started_at=now, machine=machine)
                commit_vm(
                    context,
                    "vm-running",
                    lambda: context.store.put_vm(running),
                    EventKind.VM_STARTED,
                    vm,
                )
            except Exception as error:
                exits.mark_start_failed(context, vm, str(error)[:1000])
                if isinstance(error, PodBroken):
                    # The kubelet starts the next attempt in a new sandbox only if this one is down.
                    commit_pod_stopped(context, pod)
                raise
    tell_of_shortage(context, record.machine)
    warm_start.tell(context, record, why_cold)
    # The guest may have ended before we wrote that it runs; its event found no running VM then.
    exits.look_again(context, vm_id)
    tell_ineffective(context, vm)
    tell_of_waiting(context, vm)
    guest_mounts.watch(context, vm_id)
    if record.machine.saved is not None:
        saved_start.complete(context, vm_id, told=record.machine.saved.renamed is not None)


def _start(context: Context, record: VmRecord, machine: Machine) -> str:
    if machine.saved is None:
        return warm_start.start(context, record, machine)
    saved_start.start(context, record, machine)
    return ""


def stop_vm(context: Context, vm_id: str, grace: float) -> None:
    """Ask the guest to power off, wait, then end it by force; nothing to do when it is not running.

    Args:
        context: the manager.
        vm_id: which VM; an unknown one is stopped already.
        grace: seconds the guest gets.
    """
    context.reserve.release()
    known = context.store.vms.get(vm_id)
    if known is not None and known.phase in (VmPhase.STARTING, VmPhase.HIBERNATED):
        # A start under way comes to its end first, so that the guest gets its grace.
        with context.locks(known.vm.pod.id):
            pass
    record = _asked_to_end(context, vm_id)
    if record is not None and grace > 0 and not context.hypervisors.forgets(record.hypervisor):
        hypervisor = context.hypervisors.named(record.hypervisor)
        deadline = time.monotonic() + grace
        while (left := deadline - time.monotonic()) > 0:
            _press_power_button(hypervisor, vm_id)
            if exits.wait_for_exit(context, vm_id, min(left, POWER_BUTTON_INTERVAL)):
                break
    known = context.store.vms.get(vm_id)
    if known is not None:
        with context.locks(known.vm.pod.id):
            halt_vm(context, vm_id)


def halt_vm(context: Context, vm_id: str) -> None:
    """End a VM by force; the caller holds its pod's lock."""
    record = _asked_to_end(context, vm_id)
    known = context.store.vms.get(vm_id)
    if known is None:
        return
    context.journal.undo(vm_id, {RUNNING})
    if record is not None:
        exits.mark_exited(context, vm_id, exits.forced_exit())
    elif known.phase is VmPhase.STARTING:
        # Nobody starts it now: a start failed, and could not be written down as failed or undone.
        context.journal.undo(vm_id, START)
        exits.mark_start_failed(context, known.vm, "its start was broken off; it is undone now")
    elif known.phase is VmPhase.HIBERNATED:
        hibernation.end_vm(context, vm_id)


def remove_vm(context: Context, vm_id: str) -> None:
    """Remove a VM and all it left, by force if it runs; nothing to do for an unknown one.

    Raises:
        UndoIncomplete: something could not be undone yet; the VM stays, call again.
    """
    known = context.store.vms.get(vm_id)
    if known is None:
        return
    vm = known.vm
    context.reserve.release()
    with context.locks(vm.pod.id):
        halt_vm(context, vm_id)
        removing = context.store.change_vm(vm_id, lambda r: evolve(r, phase=VmPhase.REMOVING))
        if removing is None:
            return
        context.journal.undo(vm_id)
        commit_vm(
            context, "vm-removed", lambda: context.store.delete_vm(vm_id), EventKind.VM_REMOVED, vm
        )
    context.images.store.sweep()
    context.reserve.refill()


def _ready_pod(context: Context, pod_id: str) -> PodRecord:
    record = context.store.known_pod(pod_id)
    if record.phase is not PodPhase.READY:
        raise FailedPrecondition(f"pod {record.pod.name} is stopped: run a new attempt of it")
    return record


def _same_vm(existing: VmRecord, config: VmConfig) -> str:
    if existing.vm.config != config or existing.phase is VmPhase.REMOVING:
        raise AlreadyExists(
            f"VM {existing.vm.name} exists with another configuration or is being removed: remove "
            f"container {existing.vm.id} first, or ask for the next attempt"
        )
    return existing.vm.id


def _make_way(context: Context, pod_id: str, vm_id: str = "") -> None:
    """Refuse a VM beside a running one, and make sure that no other has an emulator left."""
    for other in context.store.vms_of(pod_id):
        if other.vm.id == vm_id:
            continue
        if other.phase in (VmPhase.RUNNING, VmPhase.HIBERNATED):
            raise FailedPrecondition(
                f"a VM pod runs one container at a time, and {other.vm.name} runs in this pod: the "
                "next can start once that guest has powered off, as an init container's has to "
                "when it is done; put a sidecar (an init container with restartPolicy: Always) or "
                "a second container into a pod of its own"
            )
        halt_vm(context, other.vm.id)


def _asked_to_end(context: Context, vm_id: str) -> VmRecord | None:
    """Note that somebody asked for a VM's end; None when it does not run."""
    return context.store.change_vm(
        vm_id, lambda r: evolve(r, stopping=True) if r.phase is VmPhase.RUNNING else None
    )


def _press_power_button(hypervisor: Hypervisor, vm_id: str) -> None:
    """Ask the guest to power off. A button that fails is no reason not to end the VM in time."""
    try:
        hypervisor.shutdown(vm_id)
    except Exception as error:
        log.warning("power button not pressed", extra={"vm": vm_id, "problem": str(error)})


def _images(context: Context, config: VmConfig) -> Iterator[AbstractContextManager[Image]]:
    """The VM's image, then those of its mounts; kept from going until the VM is on record."""
    yield context.images.store.held(parse_reference(config.image), config.user_image)
    for mount in config.mounts:
        if mount.image:
            yield _held_for(context, mount)


@contextmanager
def _held_for(context: Context, mount: Mount) -> Iterator[Image]:
    with ExitStack() as held:
        try:
            image = held.enter_context(context.images.store.held(parse_reference(mount.image)))
        except (NotFound, FailedPrecondition) as error:
            raise type(error)(f"mount {mount.guest_path}: {error}") from None
        yield image


def _check_format(context: Context, vm: Vm) -> None:
    """Refuse an image of a kind that another handler's plugin knows, and none of this handler."""
    image, handler, plugin = vm.image, vm.pod.profile.handler, vm.image.recognized_by
    if plugin in ("", *vm.pod.profile.plugins) or context.hooks.why_missing(plugin):
        return
    raise FailedPrecondition(
        f"image {shown_name(vm.config.user_image or image.id)}: plugin {plugin!r} recognised it as "
        f"{image.format!r}, and handler {handler!r} does not have that plugin: use a "
        "runtimeClassName whose handler does, or remove the image from the node and pull it for "
        "this handler"
    )
