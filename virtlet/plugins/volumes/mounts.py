"""Mounts: files for cloud-init, shared directories, disks of the node, or nothing."""

import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument, Unimplemented
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.vm import Mount
from virtlet.plugins.volumes.kubelet import Origin


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
