"""Devices: block volumes that the guest finds at the path the pod names."""

import os
import stat
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument, Unimplemented
from virtlet.model.disk import Disk
from virtlet.model.vm import Device


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
