"""The hooks of the built-in volumes, and their settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.host.files import make_device_node, remove_file, remove_tree
from virtlet.host.mounts import holds_mounts, unmount_below
from virtlet.model.disk import Disk, Share, Unneeded, Volume
from virtlet.model.flavor import Flavor
from virtlet.model.image import OWN_ANNOTATIONS
from virtlet.model.launch import LaunchPart, Visible
from virtlet.model.node import Node
from virtlet.model.option import PATH, WORDS, Annotation, Option, Settings, choice
from virtlet.model.pod import Pod
from virtlet.model.vm import Device, Machine, Mount, Vm, VmConfig, VolumeRequest
from virtlet.plugins.volumes import ceph, persistent_root, virtiofs
from virtlet.plugins.volumes.flexvolume import ceph_image, is_csi, serve_flexvolume
from virtlet.plugins.volumes.image_volumes import release_image, serve_image
from virtlet.plugins.volumes.new_disks import (
    EMPTY_DIR_DISKS,
    check_empty_dirs,
    empty_dir,
    serve_empty_dir,
)
from virtlet.plugins.volumes.pod_volumes import (
    MountOrigin,
    check_shared,
    origin_of,
    serve_device,
    serve_mount,
)
from virtlet.plugins.volumes.shares import CHOWN_MOUNTS, bring_near, give_away

DRIVERS = ("virtiofs", "9p")
KUBELET_ROOT_DIR = Option(
    field="kubeletRootDir",
    flag="--kubelet-root-dir",
    env="KUBELET_ROOT_DIR",
    kind=PATH,
    default="/var/lib/kubelet/pods",
    help="Where the kubelet keeps its pods' volumes",
)
RAW_DEVICES = Option(
    field="rawDevices",
    flag="--raw-devices",
    env="VIRTLET_RAW_DEVICES",
    kind=WORDS,
    default="loop*",
    help="Comma-separated globs, relative to /dev, of the block devices of the node that pods may "
    "have by their path; block volumes of Kubernetes need no entry",
)
HOST_PATHS = Option(
    field="hostPaths",
    flag="--host-paths",
    env="VIRTLET_HOST_PATHS",
    kind=choice("all", "shared"),
    default="all",
    help="Which paths of the node pods may have volumes at: with `shared`, which the container "
    "image sets, those that are mounted into the manager's container, as others lead to its own "
    "files",
)
SHARE_DRIVER = Option(
    field="shareDriver",
    flag="--share-driver",
    env="VIRTLET_SHARE_DRIVER",
    kind=choice(*DRIVERS),
    default="virtiofs",
    help="How directories are shared with guests: virtiofs is faster and has the files of several "
    "owners, 9p needs no process beside the emulator; flavors may choose by share_driver, and pods "
    "by VirtletShareDriver",
    mappable=True,
)
SHARE_DRIVER_OF_POD = Annotation(
    name="VirtletShareDriver",
    kind=choice(*DRIVERS),
    default="",
    help="How the pod's directories are shared with the guest: `virtiofs`, or `9p` for a guest "
    "whose kernel lacks virtiofs (Linux before 5.4); by default as the flavor's share_driver says, "
    "or else the node's setting, if the image does not say that its kernel lacks that one",
)
SHARE_DRIVERS_OF_IMAGE = f"{OWN_ANNOTATIONS}share-drivers"
"""Annotation of an image: the drivers that its kernel has, the better one first."""


class Plugin:
    """Serves what a kubelet passes: its own files, volumes and block devices."""

    VIRTLET_HOOK_API = 1

    _config: Settings
    _node: Node

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the kubelet's directory, what pods may have of the node, and how it is shared."""
        return [KUBELET_ROOT_DIR, RAW_DEVICES, HOST_PATHS, SHARE_DRIVER, ceph.CEPH_MONITORS]

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare the annotations about shared directories."""
        return [CHOWN_MOUNTS, EMPTY_DIR_DISKS, SHARE_DRIVER_OF_POD]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the settings."""
        self._config, self._node = settings, node

    @hookimpl
    def virtlet_admit_vm(self, pod: Pod, config: VmConfig) -> None:
        """Refuse disks of emptyDirs that are not there."""
        root = self._config[KUBELET_ROOT_DIR]
        check_empty_dirs(EMPTY_DIR_DISKS.of(pod), config, root, pod.config.metadata.uid)

    @hookimpl
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Serve every mount and device but those of VFIO, or say why a VM cannot have it."""
        source = request.source
        if isinstance(source, Device) and source.host_path.startswith("/dev/vfio/"):
            return None
        if isinstance(source, Mount) and source.image:
            return serve_image(vm, source, request)
        if self._config[HOST_PATHS] == "shared":
            check_shared(source)
        if isinstance(source, Device) and source.guest_path == persistent_root.GUEST_PATH:
            return Unneeded(guest_path=source.guest_path, reason="it is the root disk itself")
        if isinstance(source, Device):
            return self._opened(vm, serve_device(source, request.role))
        root = self._config[KUBELET_ROOT_DIR]
        origin = origin_of(source.host_path, root, vm.pod.config.metadata.uid)
        raw_devices = self._config[RAW_DEVICES]
        size = EMPTY_DIR_DISKS.of(vm.pod).get(empty_dir(source, root, vm.pod.config.metadata.uid))
        if size is not None:
            return serve_empty_dir(vm, source, request.role, size, self._node)
        inline = is_csi(source, root, vm.pod.config.metadata.uid)
        if inline or origin is MountOrigin.FLEXVOLUME:
            monitors = self._config[ceph.CEPH_MONITORS]
            disk = serve_flexvolume(vm, source, request.role, raw_devices, monitors, self._node)
            return self._opened(vm, disk) if disk.block else disk
        volume = serve_mount(source, origin, request.role, raw_devices)
        if isinstance(volume, Disk):
            return self._opened(vm, volume)
        if not isinstance(volume, Share):
            return volume
        volume = evolve(volume, driver=self._driver(vm, source))
        if (
            volume.driver == "9p"
            and not volume.readonly
            and origin is MountOrigin.VOLUME
            and CHOWN_MOUNTS.of(vm.pod)
        ):
            give_away(Path(source.host_path), self._node.emulator_uid, self._node.emulator_gid)
        return bring_near(volume, source, vm.directory, self._node)

    @hookimpl
    def virtlet_release_volume(self, vm: Vm, request: VolumeRequest) -> None:
        """Remove the VM's own mount or node of a directory or block device, and nothing else."""
        path = vm.directory / request.role
        release_image(vm, request)
        # Before anything accesses it: the file server of a share may not answer.
        unmount_below(path)
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            remove_file(path)

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk | None:
        """Start from the pod's block volume, where the pod has one with the device path `/`."""
        device = persistent_root.device_of(vm)
        if device is None or vm.image.format not in persistent_root.FORMATS:
            return None
        return persistent_root.make_root(vm, device, flavor, self._node)

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm) -> None:
        """Remove the VM's own node of the device."""
        remove_file(vm.directory / persistent_root.FILE_NAME)

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart | None:
        """Have a program for each share and disk that takes one, and keep the root disk's device
        from other VMs while this one runs."""
        served = self._served(machine)
        device = persistent_root.device_of(machine.vm)
        if device is None or machine.root.path.name != persistent_root.FILE_NAME:
            return served if served.backends else None
        held = persistent_root.hold(machine.vm, device)
        return evolve(served, fds=held.fds)

    def _served(self, machine: Machine) -> LaunchPart:
        """The programs that serve volumes.

        Raises:
            FailedPrecondition: one is not installed, or the options of a volume are gone.
            InvalidArgument: these have become wrong.
        """
        part = virtiofs.launch_part(machine)
        disks = tuple(
            ceph.backend(machine, volume, ceph_image(mount, self._config[ceph.CEPH_MONITORS]))
            for volume, mount in zip(machine.volumes, machine.vm.config.mounts, strict=False)
            if isinstance(volume, Disk) and ceph.is_image(volume)
        )
        sockets = (Visible(path=disk.socket, writable=True) for disk in disks)
        return LaunchPart(backends=(*part.backends, *disks), visible=(*part.visible, *sockets))

    def _driver(self, vm: Vm, mount: Mount) -> str:
        """How a directory is shared.

        Raises:
            FailedPrecondition: what it takes is not installed.
        """
        chosen = SHARE_DRIVER_OF_POD.of(vm.pod)
        flavor = vm.pod.profile.flavor.get("share_driver")
        driver = chosen or (str(flavor) if flavor else self._config[SHARE_DRIVER])
        if not chosen and (mount.propagation or holds_mounts(Path(mount.host_path))):
            # virtiofsd has a descriptor of each file that the guest remembers. Nothing that is
            # mounted inside could be unmounted on the node.
            return "9p"
        said = vm.image.annotations.get(SHARE_DRIVERS_OF_IMAGE, "").replace(",", " ").split()
        known = [name for name in said if name in DRIVERS]
        if not chosen and known and driver not in known:
            driver = known[0]
        if driver == "virtiofs":
            try:
                virtiofs.program()
            except FailedPrecondition as error:
                raise FailedPrecondition(f"mount {mount.guest_path}: {error}") from None
        return driver

    def _opened(self, vm: Vm, disk: Disk) -> Disk:
        """The disk by a node that the emulator can open."""
        path = vm.directory / disk.serial
        make_device_node(disk.path, path, *self._node.user_of(vm), readonly=disk.readonly)
        return evolve(disk, path=path)
