"""Every effect of a pod and a VM on the node, each with its undo beside it.

The order in which they are performed is that of `pods.py` and `vms.py`; the order of undoing is
the reverse of what the journal holds.
"""

import logging
from typing import Any, ClassVar
from xml.etree.ElementTree import Element

from attrs import frozen

from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.journal import Effect
from virtlet.core.store.records import EffectRow
from virtlet.host import cgroups
from virtlet.host.files import make_private_directory, remove_tree
from virtlet.launch.merge import close_all
from virtlet.model.cloudinit import CloudInit
from virtlet.model.disk import Disk, Volume
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.model.vm import Device, Machine, Mount, Vm, VolumeRequest

log = logging.getLogger(__name__)

CORE = "core"
"""What the journal names as the plugin of effects that are our own."""

DONE = True
"""Record of an effect that has nothing to remember."""


@frozen
class _PodEffect:
    """What all effects of a pod have."""

    context: Context
    pod: Pod
    plugin: str = CORE
    role: str = ""

    @property
    def owner(self) -> str:
        return self.pod.id


@frozen
class _VmEffect:
    """What all effects of a VM have."""

    context: Context
    vm: Vm
    plugin: str = CORE
    role: str = ""

    @property
    def owner(self) -> str:
        return self.vm.id


@frozen
class PodDirectory(_PodEffect):
    """The pod's private directory."""

    kind: ClassVar[str] = "pod-directory"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        make_private_directory(self.pod.directory)
        return DONE

    def revert(self, record: bool | None) -> None:
        remove_tree(self.pod.directory)


@frozen
class PodNetwork(_PodEffect):
    """The pod's network, set up by a plugin, which serves it afterwards and undoes both."""

    kind: ClassVar[str] = "network"
    record_type: ClassVar[Any] = Network

    def apply(self) -> Network | None:
        return self.context.hooks.setup_network(self.plugin, self.pod)

    def revert(self, record: Network | None) -> None:
        self.context.hooks.teardown_network(self.plugin, self.pod, record)


@frozen
class VmDirectories(_VmEffect):
    """The VM's directory for disks, its emulator's own, and ours for its sockets and console."""

    kind: ClassVar[str] = "vm-directories"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        node = self.context.node
        make_private_directory(self.vm.directory, uid=node.emulator_uid, gid=node.emulator_gid)
        # The emulator opens what we made for it there, and cannot put anything else in its place.
        make_private_directory(self.context.paths.vm_runtime(self.vm.id), mode=0o711)
        return DONE

    def revert(self, record: bool | None) -> None:
        remove_tree(self.context.paths.vm_runtime(self.vm.id))
        remove_tree(self.vm.directory)


@frozen
class _VmDisk(_VmEffect):
    """A disk, share or set of files that a plugin made for a VM."""

    kind: ClassVar[str] = "disk"
    record_type: ClassVar[Any] = Volume

    def apply(self) -> Volume | None:
        """Disks are made by the subclasses; this one stands for a disk that is there already."""
        raise TypeError(f"{type(self).__name__} cannot be applied")

    def revert(self, record: Volume | None) -> None:
        hooks, vm = self.context.hooks, self.vm
        if self.role in (RootDisk.ROLE, SeedDisk.ROLE):
            release = hooks.release_root_disk if self.role == RootDisk.ROLE else hooks.release_seed
            release(self.plugin, vm, record if isinstance(record, Disk) else None)
        else:
            (request,) = (r for r in volume_requests(vm) if r.role == self.role)
            hooks.release_volume(self.plugin, vm, request, record)


@frozen(kw_only=True)
class RootDisk(_VmDisk):
    """The disk the VM boots from."""

    ROLE: ClassVar[str] = "root"
    flavor: Flavor

    def apply(self) -> Disk | None:
        return self.context.hooks.root_disk(self.plugin, self.vm, self.flavor)


@frozen(kw_only=True)
class VolumeDisk(_VmDisk):
    """What serves one mount or device."""

    request: VolumeRequest

    def apply(self) -> Volume | None:
        return self.context.hooks.volume(self.plugin, self.vm, self.request)


def volume_requests(vm: Vm) -> tuple[VolumeRequest, ...]:
    """What some plugin has to serve: the VM's mounts, then its devices."""
    sources: tuple[Mount | Device, ...] = (*vm.config.mounts, *vm.config.devices)
    return tuple(
        VolumeRequest(role=f"volume-{number}", source=source)
        for number, source in enumerate(sources)
    )


@frozen(kw_only=True)
class SeedDisk(_VmDisk):
    """The disk with the cloud-init data."""

    ROLE: ClassVar[str] = "seed"
    cloud_init: CloudInit

    def apply(self) -> Disk | None:
        return self.context.hooks.seed(self.plugin, self.vm, self.cloud_init)


@frozen(kw_only=True)
class Domain(_VmEffect):
    """The VM, known to the hypervisor."""

    machine: Machine | None = None
    document: Element | None = None
    kind: ClassVar[str] = "domain"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        assert self.machine is not None
        self.context.hypervisors.named(self.plugin).define(self.machine, self.document)
        return DONE

    def revert(self, record: bool | None) -> None:
        if not self.context.hypervisors.forgets(self.plugin):
            self.context.hypervisors.named(self.plugin).remove(self.vm.id)


@frozen
class ConsoleLog(_VmEffect):
    """The VM's console, followed into the pod's log."""

    kind: ClassVar[str] = "console"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        self.context.consoles.prepare(self.vm)
        return DONE

    def revert(self, record: bool | None) -> None:
        self.context.consoles.remove(self.vm)


@frozen
class VmCgroup(_VmEffect):
    """The VM's control group below the pod's, where the pod has one and we may."""

    kind: ClassVar[str] = "cgroup"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        try:
            groups = cgroups.create(self.vm.pod.config.cgroup_parent, self.vm.id)
        except OSError as error:
            log.warning("VM without a cgroup", extra={"vm": self.vm.id, "problem": str(error)})
            return DONE
        failed = cgroups.limit(groups, self.context.store.vms[self.vm.id].resources)
        if failed:
            log.warning("cgroup limits not set", extra={"vm": self.vm.id, "problem": failed})
        return DONE

    def revert(self, record: bool | None) -> None:
        cgroups.remove(self.vm.pod.config.cgroup_parent, self.vm.id)


@frozen(kw_only=True)
class Running(_VmEffect):
    """The emulator process: started through vmwrapper, ended by force."""

    machine: Machine | None = None
    token: str = ""
    kind: ClassVar[str] = "running"
    record_type: ClassVar[Any] = bool

    def apply(self) -> bool:
        assert self.machine is not None
        launches = self.context.launches
        hypervisor = self.context.hypervisors.named(self.plugin)
        groups = cgroups.find(self.vm.pod.config.cgroup_parent, self.vm.id)
        resources = self.context.store.vms[self.vm.id].resources
        part = LaunchPart(cgroups=groups, oom_score_adj=resources.oom_score_adj or None)
        parts = [(CORE, part), *self.context.hooks.launch(self.machine)]
        try:
            parts.insert(1, (self.plugin, hypervisor.launch(self.machine)))
        except BaseException:
            close_all(item for _, other in parts for item in other.fds)
            raise
        launches.arm(self.vm.id, self.token, parts)
        try:
            hypervisor.start(self.vm.id)
        finally:
            launches.disarm(self.vm.id)
        return DONE

    def revert(self, record: bool | None) -> None:
        if not self.context.hypervisors.forgets(self.plugin):
            self.context.hypervisors.named(self.plugin).stop(self.vm.id)


def restore(context: Context, row: EffectRow) -> Effect:
    """The effect that a row of the journal stands for, fit to be reverted."""
    if row.kind in (PodDirectory.kind, PodNetwork.kind):
        pod = context.store.pods[row.owner].pod
        if row.kind == PodDirectory.kind:
            return PodDirectory(context, pod)
        return PodNetwork(context, pod, row.plugin)
    vm = context.store.vms[row.owner].vm
    match row.kind:
        case VmDirectories.kind:
            return VmDirectories(context, vm)
        case _VmDisk.kind:
            return _VmDisk(context, vm, row.plugin, row.role)
        case Domain.kind:
            return Domain(context, vm, row.plugin)
        case ConsoleLog.kind:
            return ConsoleLog(context, vm)
        case VmCgroup.kind:
            return VmCgroup(context, vm)
        case Running.kind:
            return Running(context, vm, row.plugin)
    raise ValueError(f"the journal holds an effect of the unknown kind {row.kind!r}")
