"""Every effect of a pod and a VM on the node, each with its undo beside it.

The functions for `pods.py` and `vms.py` perform one effect each, in the order in which they are
called there; those of a resize are in `resize.py`. The table `UNDO` has what undoes each kind of
effect; the journal calls it in the reverse order of its rows.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

from attrs import evolve

from virtlet.core.cloud_init import merge
from virtlet.core.lifecycle import backends, resize
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.journal import CORE
from virtlet.core.lifecycle.machines import domain_document
from virtlet.core.store.records import EffectRow, VmPhase, VmRecord, decode
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import cgroups
from virtlet.host.files import (
    appear_at,
    change_owner,
    make_private_directory,
    remove_file,
    remove_tree,
)
from virtlet.launch.merge import close_all
from virtlet.launch.server import LaunchDoor
from virtlet.model.disk import Disk, Volume
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Checkpoint, Hypervisor
from virtlet.model.image import Image
from virtlet.model.launch import ENV_TOKEN, LaunchPart
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.model.vm import Device, Machine, Mount, Vm, VolumeRequest

log = logging.getLogger(__name__)
T = TypeVar("T")

POD_DIRECTORY = "pod-directory"
NETWORK = "network"
VM_DIRECTORIES = "vm-directories"
DISK = "disk"
DOMAIN = "domain"
CONSOLE = "console"
CGROUP = "cgroup"
RUNNING = "running"
WARM = "warm"
CHECKPOINT = "checkpoint"
RESTORING = "restoring"
HIBERNATED = "hibernated"
"""Also the name of its directory, in the VM's."""
SAVED = "saved"
"""Also the name of its directory, in the VM's."""
START = frozenset({CONSOLE, CGROUP, WARM, RUNNING})
"""The effects of a start."""
MOST_THREADS = 1024
"""Of an emulator beside its vCPUs'. QEMU has up to 64 for each I/O thread, and some dozens more."""
WARM_DISK = "warm.qcow2"
"""The root disk of a VM that started from a template."""
IMAGE = "image"
"""Name of the image in the VM's directory."""
ROOT, SEED = "root", "seed"
"""Roles of disks; that of a volume is the one of its request."""


def _pod(context: Context, row: EffectRow) -> Pod:
    return context.store.pods[row.owner].pod


def _vm(context: Context, row: EffectRow) -> Vm:
    return context.store.vms[row.owner].vm


def _record(row: EffectRow, kind: Any) -> Any:
    """What the effect returned; None when a crash or an error came before that was written."""
    return decode(row.record, kind) if row.record else None


# The pod's private directory.


def make_pod_directory(context: Context, pod: Pod) -> None:
    """Make it."""
    context.journal.perform(pod.id, POD_DIRECTORY, lambda: make_private_directory(pod.directory))


def _remove_pod_directory(context: Context, row: EffectRow) -> None:
    remove_tree(_pod(context, row).directory)


# A pod that is made for a VM that is to go on from a checkpoint; undone once it has that VM.


def begin_restore(context: Context, pod: Pod) -> None:
    """Note it."""
    context.journal.perform(pod.id, RESTORING, lambda: None)


def _end_restore(context: Context, row: EffectRow) -> None:
    """Nothing is on the node: that the row is there has recovery remove the pod."""


# The pod's network: one plugin sets it up, serves it afterwards and undoes both.


def set_up_network(context: Context, pod: Pod, macs: Sequence[str] | None = None) -> Network:
    """The network as the pod's VMs get it. The record is what its plugin made of it alone, and
    undoes all of it.

    Args:
        context: the manager.
        pod: whose network.
        macs: what the guest's NICs have already, one after the other; None for what comes.

    Raises:
        FailedPrecondition: no plugin sets one up, or it has not as many NICs.
    """
    hooks, journal = context.hooks, context.journal
    found = hooks.first(
        "virtlet_setup_network",
        pod.profile,
        lambda plugin: journal.perform(
            pod.id,
            NETWORK,
            lambda: hooks.setup_network(plugin, pod),
            plugin=plugin,
            record=Network,
        ),
    )
    if found is None:
        raise FailedPrecondition(
            f"no plugin of handler {pod.profile.handler!r} sets up a network for pod {pod.name}: "
            "name one under the handler's `plugins`"
        )
    plugin, made = found
    network = hooks.adjust_network(pod, made)
    if macs is not None:
        network = with_macs(network, macs)
    journal.reached("network:adjusted")
    hooks.serve_network(plugin, pod, network)
    journal.reached("network:served")
    return network


def with_macs(network: Network, macs: Sequence[str]) -> Network:
    """A network whose NICs have other MAC addresses, one after the other.

    Raises:
        FailedPrecondition: it has not as many NICs.
    """
    if len(macs) != len(network.nics):
        raise FailedPrecondition(
            f"the pod gets {len(network.nics)} NICs, and the checkpoint's guest has {len(macs)}"
        )
    nics = (evolve(nic, mac=mac) for nic, mac in zip(network.nics, macs, strict=True))
    return evolve(network, nics=tuple(nics))


def _tear_down_network(context: Context, row: EffectRow) -> None:
    context.hooks.teardown_network(row.plugin, _pod(context, row), _record(row, Network))


# The VM's directory for disks, and the one for its sockets and console.


def make_vm_directories(context: Context, vm: Vm, images: Iterable[Image]) -> None:
    """Make them, with names of the images: its emulator has no way to the image store.

    Args:
        context: the manager.
        vm: whose directories.
        images: as they are in the store: its own, and those that it mounts.
    """

    def make() -> None:
        give_directories(context, vm)
        for stored, near in zip(images, (vm.image, *vm.volume_images), strict=True):
            appear_at(stored.path, near.path)

    context.journal.perform(vm.id, VM_DIRECTORIES, make)


def give_directories(context: Context, vm: Vm) -> None:
    """Let the emulator of a VM through, and nobody else who is not root.

    It opens what we made for it there. One with a group of its own cannot put anything else in its
    place.
    """
    uid, gid = context.node.user_of(vm)
    runtime = context.paths.vm_runtime(vm.id)
    if vm.gid is None:
        make_private_directory(vm.directory, uid=uid, gid=gid)
        make_private_directory(runtime, gid=0, mode=0o711)
    else:
        make_private_directory(vm.directory, uid=0, gid=gid, mode=0o710)
        make_private_directory(runtime, uid=0, gid=gid, mode=0o710)


def _remove_vm_directories(context: Context, row: EffectRow) -> None:
    remove_tree(context.paths.vm_runtime(row.owner))
    remove_tree(_vm(context, row).directory)


def give_to_shared_user(context: Context, vm: Vm, user: int) -> None:
    """Give the node's user what was made for a user of the VM's own."""
    give_directories(context, vm)
    for path in vm.directory.iterdir():
        change_owner(path, user, *context.node.user_of(vm))


# Disks, shares and files that plugins make for a VM.


def _disk(
    context: Context, vm: Vm, hook: str, role: str, make: Callable[[str], T | None]
) -> T | None:
    """Ask the plugins of a hook in turn for a disk; None when none makes one."""
    found: tuple[str, T] | None = context.hooks.first(
        hook,
        vm.pod.profile,
        lambda plugin: context.journal.perform(
            vm.id, DISK, lambda: make(plugin), plugin=plugin, role=role, record=Volume
        ),
    )
    return found[1] if found else None


def serve_volumes(context: Context, vm: Vm) -> tuple[Volume, ...]:
    """What serves the VM's mounts and devices, one after the other.

    Raises:
        FailedPrecondition: no plugin serves one of them.
    """
    return tuple(_serve_volume(context, vm, request) for request in _volume_requests(vm))


def _serve_volume(context: Context, vm: Vm, request: VolumeRequest) -> Any:
    def serve(plugin: str) -> Volume | None:
        return context.hooks.volume(plugin, vm, request)

    volume: Any = _disk(context, vm, "virtlet_volume", request.role, serve)
    if volume is None:
        raise FailedPrecondition(
            f"no plugin of handler {vm.pod.profile.handler!r} serves the mount "
            f"{request.source.guest_path} (from {_source(request)}) of VM {vm.name}: take "
            "it out of the pod, or name a plugin that serves it"
        )
    return volume


def _volume_requests(vm: Vm) -> tuple[VolumeRequest, ...]:
    """What some plugin has to serve: the VM's mounts, then its devices."""
    sources: tuple[Mount | Device, ...] = (*vm.config.mounts, *vm.config.devices)
    images = {image.path.name: image for image in vm.volume_images}
    return tuple(
        VolumeRequest(role=volume_role(n), source=source, image=images.get(volume_role(n)))
        for n, source in enumerate(sources)
    )


def _source(request: VolumeRequest) -> str:
    source = request.source
    return source.host_path if request.image is None else f"image {request.image.id}"


def volume_role(number: int) -> str:
    """The role of a VM's request for a volume, by its number."""
    return f"volume-{number}"


def make_root_disk(context: Context, vm: Vm, flavor: Flavor) -> Disk:
    """The disk the VM boots from.

    Raises:
        FailedPrecondition: no plugin makes one.
    """
    disk = _disk(
        context, vm, "virtlet_root_disk", ROOT, lambda p: context.hooks.root_disk(p, vm, flavor)
    )
    if disk is None:
        raise FailedPrecondition(
            f"no plugin of handler {vm.pod.profile.handler!r} makes a root disk for VM {vm.name} "
            f"of an image of format {vm.image.format!r} (virtlet_root_disk): name one that does "
            "under the handler's `plugins`, or take another image"
        )
    return disk


def make_seed(context: Context, vm: Vm, flavor: Flavor, volumes: tuple[Volume, ...]) -> Disk | None:
    """The disk with the cloud-init data; None when no plugin makes one."""
    documents = merge(context.hooks.cloud_init(vm, flavor, volumes))
    return _disk(context, vm, "virtlet_seed", SEED, lambda p: context.hooks.seed(p, vm, documents))


def _release_disk(context: Context, row: EffectRow) -> None:
    hooks, vm = context.hooks, _vm(context, row)
    volume: Volume | None = _record(row, Volume)
    if row.role in (ROOT, SEED):
        release = hooks.release_root_disk if row.role == ROOT else hooks.release_seed
        release(row.plugin, vm, volume if isinstance(volume, Disk) else None)
    else:
        (request,) = (r for r in _volume_requests(vm) if r.role == row.role)
        hooks.release_volume(row.plugin, vm, request, volume)


def give_disks(context: Context, vm: Vm, disks: Iterable[Volume | None]) -> None:
    """Give a VM's own user the files of disks that were made for the node's.

    A plugin need not know of users of VMs. A read-only disk elsewhere may be that of other VMs too.

    Raises:
        FailedPrecondition: one is gone, or cannot be given.
    """
    if vm.uid is None or vm.gid is None:
        return
    for disk in disks:
        if not isinstance(disk, Disk) or disk.served:
            continue
        if disk.path.parent == vm.directory or not disk.readonly:
            try:
                change_owner(disk.path, context.node.emulator_uid, vm.uid, vm.gid)
            except OSError as error:
                raise FailedPrecondition(
                    f"disk {disk.path} of VM {vm.name} cannot be given to its emulator's user: "
                    f"{error.strerror}"
                ) from None


# The VM, known to the hypervisor.


def define_domain(
    context: Context, plugin: str, machine: Machine, document: Element | None
) -> None:
    """Define it with the hypervisor of a plugin."""
    hypervisor = context.hypervisors.named(plugin)
    context.journal.perform(
        machine.vm.id, DOMAIN, lambda: hypervisor.define(machine, document), plugin=plugin
    )


def _remove_domain(context: Context, row: EffectRow) -> None:
    if not context.hypervisors.forgets(row.plugin):
        context.hypervisors.named(row.plugin).remove(row.owner)


# The VM's console, followed into the pod's log.


def follow_console(context: Context, vm: Vm) -> None:
    """Make its files, and follow it."""
    context.journal.perform(vm.id, CONSOLE, lambda: context.consoles.prepare(vm))


def _remove_console(context: Context, row: EffectRow) -> None:
    context.consoles.remove(_vm(context, row))


# The VM's control group below the pod's, where the pod has one.


def make_cgroup(context: Context, record: VmRecord) -> None:
    """Make it with the VM's limits."""
    vm = record.vm

    def make() -> None:
        parent = vm.pod.config.cgroup_parent
        try:
            groups = cgroups.create(parent, vm.id)
            problem = "" if groups or not parent.strip("/") else "no hierarchy has the pod's"
        except OSError as error:
            problem = str(error)
        if problem and context.launches.cgroup_required:
            raise FailedPrecondition(
                f"VM {vm.id} cannot have a cgroup below {parent}: {problem}; let the manager write "
                "there, or set vmCgroup to optional"
            )
        if problem:
            log.warning("VM without a cgroup", extra={"vm": vm.id, "problem": problem})
            return
        flavor = record.machine.flavor if record.machine else Flavor()
        most = MOST_THREADS + max(flavor.vcpus, flavor.max_vcpus)
        failed = {
            **cgroups.limit(groups, record.resources),
            **cgroups.bound_tasks(groups, most),
        }
        if failed:
            log.warning("cgroup limits not set", extra={"vm": vm.id, "problem": failed})

    context.journal.perform(vm.id, CGROUP, make)


def _remove_cgroup(context: Context, row: EffectRow) -> None:
    cgroups.remove(_vm(context, row).pod.config.cgroup_parent, row.owner)


# A VM that is to start from a template: another document, and another disk beside its own.


def make_warm(
    context: Context, record: VmRecord, machine: Machine, put_in_place: Callable[[], str]
) -> None:
    """Put them in their place; the row's record is what `put_in_place` returns."""
    context.journal.perform(machine.vm.id, WARM, put_in_place, plugin=record.hypervisor, record=str)


def _make_cold(context: Context, row: EffectRow) -> None:
    """Have the VM boot at its next start, if there is to be one."""
    record = context.store.vms[row.owner]
    remove_file(record.vm.directory / WARM_DISK)
    if record.phase is VmPhase.STARTING and record.machine is not None:
        hypervisor = context.hypervisors.named(row.plugin)
        document = domain_document(context.hooks, hypervisor, record.machine)
        hypervisor.define(record.machine, document)


# A VM that is to go on from a checkpoint: copies of memory and disk, until it runs.


def save_state(context: Context, vm: Vm, put: Callable[[Path], None]) -> Path:
    """Put them into a directory, which is returned."""
    directory = vm.directory / SAVED
    context.journal.perform(vm.id, SAVED, lambda: put(directory))
    return directory


def _remove_state(context: Context, row: EffectRow) -> None:
    remove_tree(_vm(context, row).directory / SAVED)


# The emulator process: started through vmwrapper, ended by force.


def start_emulator(context: Context, record: VmRecord, machine: Machine) -> None:
    """Start it."""
    vm, plugin = record.vm, record.hypervisor

    def start() -> None:
        hypervisor = context.hypervisors.named(plugin)
        groups = cgroups.find(vm.pod.config.cgroup_parent, vm.id)
        part = LaunchPart(cgroups=groups, oom_score_adj=record.resources.oom_score_adj)
        asked = context.hooks.launch(machine)
        # The hypervisor knows what its emulator needs to see.
        parts = [
            (CORE, part),
            *((name, evolve(more, jail=False, alone=False)) for name, more in asked),
        ]
        try:
            own = hypervisor.launch(machine)
        except BaseException:
            close_all(item for _, other in parts for item in other.fds)
            raise
        parts.insert(1, (plugin, own))
        try:
            backends.start(context, record, [one for _, each in parts for one in each.backends])
        except BaseException:
            close_all(item for _, other in parts for item in other.fds)
            raise
        context.journal.reached("running:backends-started")
        door = door_of(context, vm)
        context.launches.arm(vm.id, machine.environment[ENV_TOKEN], parts, door)
        try:
            hypervisor.start(vm.id)
        except VirtletError as error:
            if words := context.backends.words(vm.id):
                raise FailedPrecondition(f"{words}; {error}") from None
            raise
        finally:
            left = context.launches.disarm(vm.id)
        if left and own.required:
            raise FailedPrecondition(
                f"the emulator of VM {vm.id} runs without its launch, so neither in its jail nor "
                f"in its cgroup, and is ended: something other than {machine.vmwrapper} started "
                "it; see what edits its domain document"
            )

    context.journal.perform(vm.id, RUNNING, start, plugin=plugin)


def door_of(context: Context, vm: Vm) -> LaunchDoor | None:
    """Where the launch of a VM with a user of its own is fetched."""
    if vm.uid is None or vm.gid is None:
        return None
    return LaunchDoor(context.paths.launch_socket(vm.id), vm.uid, vm.gid)


def _stop_emulator(context: Context, row: EffectRow) -> None:
    if not context.hypervisors.forgets(row.plugin):
        context.hypervisors.named(row.plugin).stop(row.owner)
    backends.end(context, row.owner)


# What a checkpoint does in the emulator of a VM that runs on; undone when it is taken, too.


def take_checkpoint(
    context: Context, record: VmRecord, take: Callable[[Hypervisor], Checkpoint]
) -> Checkpoint:
    """Take it."""
    hypervisor = context.hypervisors.named(record.hypervisor)
    return context.journal.perform(
        record.vm.id, CHECKPOINT, lambda: take(hypervisor), plugin=record.hypervisor
    )


def _settle(context: Context, row: EffectRow) -> None:
    runs = context.store.vms[row.owner].phase is VmPhase.RUNNING
    if runs and not context.hypervisors.forgets(row.plugin):
        context.hypervisors.named(row.plugin).settle(row.owner)


# The memory of a VM that is hibernated; undone when the VM runs, goes on running, or has ended.


def hibernate(context: Context, record: VmRecord, write: Callable[[Hypervisor, Path], str]) -> None:
    """Write it into a directory; the row's record is what `write` returns."""
    hypervisor = context.hypervisors.named(record.hypervisor)
    directory = record.vm.directory / HIBERNATED

    def put() -> str:
        make_private_directory(directory)
        return write(hypervisor, directory)

    context.journal.perform(record.vm.id, HIBERNATED, put, plugin=record.hypervisor, record=str)


def disk_of(row: EffectRow) -> str | None:
    """What was told of the disk of a hibernated VM."""
    told: str | None = _record(row, str)
    return told


def _forget_memory(context: Context, row: EffectRow) -> None:
    _settle(context, row)
    remove_tree(_vm(context, row).directory / HIBERNATED)


UNDO: Mapping[str, Callable[[Context, EffectRow], None]] = {
    POD_DIRECTORY: _remove_pod_directory,
    NETWORK: _tear_down_network,
    VM_DIRECTORIES: _remove_vm_directories,
    DISK: _release_disk,
    DOMAIN: _remove_domain,
    CONSOLE: _remove_console,
    CGROUP: _remove_cgroup,
    WARM: _make_cold,
    RUNNING: _stop_emulator,
    CHECKPOINT: _settle,
    HIBERNATED: _forget_memory,
    RESTORING: _end_restore,
    SAVED: _remove_state,
    resize.DEFINITION: resize.undo_definition,
    resize.LIMITS: resize.undo_limits,
    resize.OOM_SCORE: resize.undo_oom_score,
    resize.MACHINE: resize.undo_machine,
}
"""What undoes each kind of effect; idempotent, whether the row has a record or not."""


def revert(context: Context, row: EffectRow) -> None:
    """Undo the effect that a row of the journal stands for."""
    if row.kind not in UNDO:
        raise ValueError(f"the journal holds an effect of the unknown kind {row.kind!r}")
    UNDO[row.kind](context, row)
