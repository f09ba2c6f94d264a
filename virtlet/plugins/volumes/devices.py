"""Devices: block volumes that the guest finds at the path the pod names.

A device of the node belongs to root and its group `disk`, and stays theirs. Each VM gets a node of
its own of the same device, in its own directory: the kernel looks at the node's owner and mode,
whatever those of the device's other nodes are.
"""

import os
import stat
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument, Unimplemented
from virtlet.host.files import remove_file
from virtlet.model.disk import Disk
from virtlet.model.vm import Device


def make_node(device: Path, path: Path, uid: int, gid: int, *, readonly: bool) -> None:
    """Make a node of a block device; replaces one that is there.

    Args:
        device: the device.
        path: where the node is made.
        uid: the only user that can open it.
        gid: its group.
        readonly: whether it can be opened for reading only.

    Raises:
        FailedPrecondition: the file system of `path` has no devices.
    """
    if os.statvfs(path.parent).f_flag & os.ST_NODEV:
        raise FailedPrecondition(
            f"{path.parent} is on a file system that is mounted with nodev, so the emulator cannot "
            f"open {device}: mount it without, or choose another --data-dir"
        )
    remove_file(path)
    mode = 0o400 if readonly else 0o600
    os.mknod(path, stat.S_IFBLK | mode, device.stat().st_rdev)
    # Its directory belongs to the emulator's user, who may put a link in its place.
    os.chown(path, uid, gid, follow_symlinks=False)


def serve_device(device: Device, role: str) -> Disk:
    """The disk a device of the node becomes in the VM.

    Args:
        device: what the pod is given; links of the kubelet's are followed.
        role: name of the request; becomes the disk's serial number.

    Raises:
        InvalidArgument: it is no block device.
        FailedPrecondition: there is nothing at the host path.
        Unimplemented: the device path asks for a persistent root disk.
    """
    if device.guest_path == "/":
        raise Unimplemented(
            "device path /: root disks that outlive their pod are not served yet: give the "
            "volume another devicePath"
        )
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
            f"device {device.guest_path}: {device.host_path} is no block device, and a VM can be "
            "given no other: use a PersistentVolumeClaim with volumeMode Block"
        )
    return Disk(
        path=Path(path),
        format="raw",
        readonly="w" not in (device.permissions or "rwm"),
        block=True,
        serial=role,
        guest_path=device.guest_path,
    )
