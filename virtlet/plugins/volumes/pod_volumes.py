"""What the mounts and devices of a pod become: files for cloud-init, shares, disks, or nothing.

The layout of the kubelet, below its root for pods, says where a path comes from:
`UID/volumes/PLUGIN/NAME…`, `UID/volume-subpaths/NAME/…` for a part of such a volume,
`UID/etc-hosts`, and `UID/containers/CONTAINER/…` for the termination message of a container. PLUGIN
has `~` for `/`.
"""

import enum
import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.mounts import mount_of
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.vm import Device, Mount

BIDIRECTIONAL = 2
"""Of CRI's `MountPropagation`."""
FLEXVOLUME_PLUGIN = "virtlet~flexvolume_driver"


class MountOrigin(enum.Enum):
    """Where a mounted path comes from."""

    CONFIG = "configuration"
    """A ConfigMap or the downward API: files without secrets."""
    SECRET = "secret"
    """A Secret, or a projected volume, which may hold secrets."""
    VOLUME = "volume"
    """Any other volume of the pod."""
    FLEXVOLUME = "FlexVolume"
    """A volume of Virtlet's own FlexVolume driver."""
    HOSTS = "hosts file"
    TERMINATION_LOG = "termination log"
    NODE = "node"
    """Not the kubelet's for this pod: a hostPath volume."""


_PLUGINS = {
    "kubernetes.io~configmap": MountOrigin.CONFIG,
    "kubernetes.io~downward-api": MountOrigin.CONFIG,
    "kubernetes.io~secret": MountOrigin.SECRET,
    "kubernetes.io~projected": MountOrigin.SECRET,
    FLEXVOLUME_PLUGIN: MountOrigin.FLEXVOLUME,
}


def origin_of(path: str, root: Path, pod_uid: str) -> MountOrigin:
    """Where a mounted path of a pod comes from.

    Args:
        path: the host path of the mount.
        root: the kubelet's directory of pods.
        pod_uid: of the pod; directories of other pods count as the node's.
    """
    if pod_uid in ("", ".", "..") or "/" in pod_uid:
        return MountOrigin.NODE
    try:
        inside = PurePosixPath(path).relative_to(root / pod_uid).parts
    except ValueError:
        return MountOrigin.NODE
    if ".." in inside:
        return MountOrigin.NODE
    match inside:
        case ("volumes", plugin, _, *_):
            return _PLUGINS.get(plugin, MountOrigin.VOLUME)
        case ("volume-subpaths", name, *_):
            return _of_volume(root / pod_uid / "volumes", name)
        case ("etc-hosts",):
            return MountOrigin.HOSTS
        case ("containers", _, _):
            return MountOrigin.TERMINATION_LOG
        case _:
            return MountOrigin.NODE


def _of_volume(volumes: Path, name: str) -> MountOrigin:
    for plugin in volumes.iterdir() if volumes.is_dir() else ():
        if (plugin / name).is_dir():
            return _PLUGINS.get(plugin.name, MountOrigin.VOLUME)
    # A kubelet has a directory for each volume but those of hostPath.
    return MountOrigin.NODE


def check_shared(source: Mount | Device) -> None:
    """Refuse a path that is the container's that the manager runs in, and not the node's.

    Raises:
        FailedPrecondition: it is not on a mount of its own.
    """
    if mount_of(Path(source.host_path)) == Path("/"):
        raise FailedPrecondition(
            f"mount {source.guest_path}: {source.host_path} of the node is not shared with the pod "
            "that Virtlet runs in: add the directory to the DaemonSet (docs/guide/cluster.md), or "
            "use one that is shared"
        )


def serve_mount(mount: Mount, origin: MountOrigin, role: str, raw_devices: Sequence[str]) -> Volume:
    """What a mount becomes in the VM.

    Args:
        mount: what the pod mounts.
        origin: where it comes from.
        role: name of the request; becomes the tag or serial number that the guest sees.
        raw_devices: globs of block devices that pods may have by their path.

    Raises:
        InvalidArgument: a VM cannot have such a mount.
        FailedPrecondition: the host path does not exist.
    """
    for path in (mount.guest_path, mount.host_path):
        if not path.startswith("/"):
            raise InvalidArgument(f"mount: path {path!r} is not absolute")
    if origin is MountOrigin.TERMINATION_LOG:
        return Unneeded(
            guest_path=mount.guest_path,
            reason="a VM leaves no termination message; its output is in the pod's log",
        )
    if origin in (MountOrigin.CONFIG, MountOrigin.SECRET, MountOrigin.HOSTS):
        # The kubelet gives them what the pod says: defaultMode, the items' modes, fsGroup.
        return GuestFiles(host_path=Path(mount.host_path), guest_path=mount.guest_path, mode=None)
    return _by_content(mount, role, raw_devices)


def _by_content(mount: Mount, role: str, raw_devices: Sequence[str]) -> Volume:
    mode = _mode(mount)
    if mount.propagation == BIDIRECTIONAL:
        raise InvalidArgument(
            f"mount {mount.guest_path}: what a guest mounts cannot appear on the node, as "
            "mountPropagation: Bidirectional asks for: use HostToContainer, or none"
        )
    if stat.S_ISDIR(mode):
        return Share(
            host_path=Path(mount.host_path),
            guest_path=mount.guest_path,
            tag=role,
            readonly=mount.readonly,
            driver="9p",
        )
    if stat.S_ISBLK(mode):
        return node_disk(mount, mount.host_path, role, raw_devices)
    if not stat.S_ISREG(mode):
        raise InvalidArgument(
            f"mount {mount.guest_path}: {mount.host_path} is a {_kind(mode)}, which a VM cannot "
            "share with the node: mount a directory, a file or a block device"
        )
    if not mount.readonly:
        raise InvalidArgument(
            f"mount {mount.guest_path}: {mount.host_path} is a file, of which a VM gets a copy "
            "that never reaches the node: mount it with readOnly, or mount its directory"
        )
    return GuestFiles(host_path=Path(mount.host_path), guest_path=mount.guest_path, mode=None)


def _mode(mount: Mount) -> int:
    try:
        return os.stat(mount.host_path).st_mode
    except OSError as error:
        raise FailedPrecondition(
            f"mount {mount.guest_path}: {mount.host_path} on the node: {error.strerror}"
        ) from None


def node_disk(
    mount: Mount, host_path: str, role: str, raw_devices: Sequence[str], *, filesystem: bool = False
) -> Disk:
    """The disk that a device of the node becomes, if pods may have it by its path.

    Args:
        mount: of the pod.
        host_path: of the device; links are followed.
        role: name of the request; becomes the disk's serial number.
        raw_devices: globs of devices that pods may have.
        filesystem: whether the guest mounts it.

    Raises:
        InvalidArgument: the node does not give it away, or it is no block device.
        FailedPrecondition: there is nothing at the path.
    """
    path = os.path.realpath(host_path)
    name = path.removeprefix("/dev/")
    if name == path or not any(_matches(name, glob) for glob in raw_devices):
        raise InvalidArgument(
            f"mount {mount.guest_path}: the node does not give away {path}: add it to rawDevices "
            "in the manager's configuration, or use a block PersistentVolumeClaim"
        )
    block_device(Device(guest_path=mount.guest_path, host_path=path))
    return Disk(
        path=Path(path),
        format="raw",
        readonly=mount.readonly,
        block=True,
        serial=role,
        guest_path=mount.guest_path,
        filesystem=filesystem,
    )


def _matches(name: str, glob: str) -> bool:
    """Whether a path below /dev fits a glob, whose stars end at slashes."""
    parts, globs = name.split("/"), glob.split("/")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "named pipe"
    return "character device"


def serve_device(device: Device, role: str) -> Disk:
    """The disk a device of the node becomes in the VM.

    Args:
        device: of the pod; links of the kubelet are followed.
        role: name of the request; becomes the disk's serial number.

    Raises:
        InvalidArgument: it is not a block device.
        FailedPrecondition: the host path does not exist.
    """
    return Disk(
        path=block_device(device),
        format="raw",
        readonly=is_readonly(device),
        block=True,
        serial=role,
        guest_path=device.guest_path,
    )


def is_readonly(device: Device) -> bool:
    """Whether the pod may only read the device."""
    return "w" not in (device.permissions or "rwm")


def block_device(device: Device) -> Path:
    """The block device itself; links of the kubelet are followed.

    Raises:
        InvalidArgument: it is something else.
        FailedPrecondition: there is nothing at the host path.
    """
    for given in (device.guest_path, device.host_path):
        if not given.startswith("/"):
            raise InvalidArgument(f"device: path {given!r} is not absolute")
    path = os.path.realpath(device.host_path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise FailedPrecondition(
            f"device {device.guest_path}: {device.host_path} on the node: {error.strerror}"
        ) from None
    if not stat.S_ISBLK(mode):
        raise InvalidArgument(
            f"device {device.guest_path}: {device.host_path} is not a block device, the only kind "
            "that a VM can have beside VFIO groups: use a PersistentVolumeClaim with volumeMode "
            "Block, or a device plugin that binds devices to vfio-pci"
        )
    return Path(path)
