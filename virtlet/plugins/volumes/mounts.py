"""Mounts: files for cloud-init, shared directories, disks of the node, or nothing.

Where a path comes from is told by the kubelet's layout, below its root for pods:
`UID/volumes/PLUGIN/NAME…`, `UID/volume-subpaths/NAME/…` for a part of such a volume,
`UID/etc-hosts`, and `UID/containers/CONTAINER/…` for the file a container may leave its last words
in. PLUGIN has `~` for `/`.
"""

import enum
import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from virtlet.errors import FailedPrecondition, InvalidArgument, Unimplemented
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.vm import Mount

FLEXVOLUME_PLUGIN = "virtlet~flexvolume_driver"


class Origin(enum.Enum):
    """Where a mounted path comes from."""

    CONFIG = "configuration"
    """A ConfigMap or the downward API: files that are no secrets."""
    SECRET = "secret"
    """A Secret, or a projected volume, which may hold secrets."""
    VOLUME = "volume"
    """Any other volume of the pod."""
    FLEXVOLUME = "FlexVolume"
    """A volume of Virtlet's own FlexVolume driver."""
    HOSTS = "hosts file"
    TERMINATION_LOG = "termination log"
    NODE = "node"
    """Nothing of the kubelet's for this pod: a hostPath volume."""


_PLUGINS = {
    "kubernetes.io~configmap": Origin.CONFIG,
    "kubernetes.io~downward-api": Origin.CONFIG,
    "kubernetes.io~secret": Origin.SECRET,
    "kubernetes.io~projected": Origin.SECRET,
    FLEXVOLUME_PLUGIN: Origin.FLEXVOLUME,
}


def origin_of(path: str, root: Path, pod_uid: str) -> Origin:
    """Where a mounted path of a pod comes from.

    Args:
        path: the host path of the mount.
        root: the kubelet's directory of pods.
        pod_uid: whose mount it is; directories of other pods are the node's.
    """
    if pod_uid in ("", ".", "..") or "/" in pod_uid:
        return Origin.NODE
    try:
        inside = PurePosixPath(path).relative_to(root / pod_uid).parts
    except ValueError:
        return Origin.NODE
    if ".." in inside:
        return Origin.NODE
    match inside:
        case ("volumes", plugin, _, *_):
            return _PLUGINS.get(plugin, Origin.VOLUME)
        case ("volume-subpaths", name, *_):
            return _of_volume(root / pod_uid / "volumes", name)
        case ("etc-hosts",):
            return Origin.HOSTS
        case ("containers", _, _):
            return Origin.TERMINATION_LOG
        case _:
            return Origin.NODE


def _of_volume(volumes: Path, name: str) -> Origin:
    for plugin, origin in _PLUGINS.items():
        if (volumes / plugin / name).is_dir():
            return origin
    return Origin.VOLUME


def serve_mount(mount: Mount, origin: Origin, role: str, raw_devices: Sequence[str]) -> Volume:
    """What a mount becomes in the VM.

    Args:
        mount: what the pod mounts.
        origin: where the kubelet says it comes from.
        role: name of the request; becomes the tag or serial number the guest finds it by.
        raw_devices: globs of block devices that may be had by their path.

    Raises:
        InvalidArgument: such a mount cannot be had in a VM.
        FailedPrecondition: there is nothing at the host path.
        Unimplemented: FlexVolumes are not served.
    """
    for path in (mount.guest_path, mount.host_path):
        if not path.startswith("/"):
            raise InvalidArgument(f"mount: path {path!r} is not absolute")
    if origin is Origin.TERMINATION_LOG:
        return Unneeded(
            guest_path=mount.guest_path,
            reason="a VM leaves no termination message; its last words are in the pod's log",
        )
    if origin is Origin.FLEXVOLUME:
        raise Unimplemented(
            f"mount {mount.guest_path}: FlexVolumes (virtlet/flexvolume_driver) are not served "
            "yet: use a PersistentVolumeClaim with volumeMode Block or Filesystem"
        )
    if origin in (Origin.CONFIG, Origin.SECRET, Origin.HOSTS):
        # The kubelet gives them what the pod says: defaultMode, the items' modes, fsGroup.
        return GuestFiles(host_path=Path(mount.host_path), guest_path=mount.guest_path, mode=None)
    return _by_content(mount, role, raw_devices)


def _by_content(mount: Mount, role: str, raw_devices: Sequence[str]) -> Volume:
    mode = _mode(mount)
    if stat.S_ISDIR(mode):
        return Share(
            host_path=Path(mount.host_path),
            guest_path=mount.guest_path,
            tag=role,
            readonly=mount.readonly,
            driver="9p",
        )
    if stat.S_ISBLK(mode):
        return _node_disk(mount, role, raw_devices)
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


def _node_disk(mount: Mount, role: str, raw_devices: Sequence[str]) -> Disk:
    path = os.path.realpath(mount.host_path)
    name = path.removeprefix("/dev/")
    if name == path or not any(_matches(name, glob) for glob in raw_devices):
        raise InvalidArgument(
            f"mount {mount.guest_path}: the node does not give away {path}: add it to rawDevices "
            "in the manager's configuration, or use a block PersistentVolumeClaim"
        )
    return Disk(
        path=Path(path),
        format="raw",
        readonly=mount.readonly,
        block=True,
        serial=role,
        guest_path=mount.guest_path,
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
