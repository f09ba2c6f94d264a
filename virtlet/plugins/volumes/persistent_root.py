"""Root disks on a block volume, which outlive their pod: those with the device path `/`.

The first sector of the device is a header, and the guest's disk begins with the second. The header
is that of Virtlet 1, so its devices start here as they are: magic, version and the SHA-256 of the
image's file, big-endian. Version 2 is for a machine that has a TPM or keeps UEFI variables: the
hypervisor has room for them between header and disk, which begins at 4 MiB. A device without the
header of the VM's image is overwritten. The header is cleared before and written after the image,
so what was cut short is never started from.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.commands import CommandLimits, run
from virtlet.host.confinement import Confinement
from virtlet.host.files import make_device_node
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchFd, LaunchPart
from virtlet.model.node import Node
from virtlet.model.vm import Device, Vm
from virtlet.plugins.volumes.pod_volumes import block_device, is_readonly

FILE_NAME = "persistent-root"
"""Of the device's node in the VM's directory."""
GUEST_PATH = "/"
FORMATS = ("qcow2", "raw")
"""Of images that can be written to a device."""
SECTOR = 512
_HEADER = struct.Struct(">QH32s")
_MAGIC, _VERSION = 0x263DBE52BA576702, 2
_STARTS = {1: SECTOR, 2: 4 << 20}
"""Version of the header to the first byte of the guest's disk."""
_STATE = 4096
"""First byte of what version 2 has for the hypervisor."""
_END = 1 << 20
"""Bytes at the device's end where a partition table of earlier content may be."""
_TIMEOUT = 3600.0
_LIMITS = CommandLimits(cpu_seconds=3600, memory=2 << 30, output=1 << 20)


def device_of(vm: Vm) -> Device | None:
    """The device that the pod wants the VM to start from; None where there is none."""
    return next((d for d in vm.config.devices if d.guest_path == GUEST_PATH), None)


def make_root(vm: Vm, device: Device, flavor: Flavor, node: Node) -> Disk:
    """Have the image on the device, as its guest left it if it is there already.

    A device that has the image already keeps the version of its header.

    Raises:
        InvalidArgument: it is no block device, or can only be read.
        FailedPrecondition: it is too small, in use, gone, or of a newer Virtlet.
    """
    if is_readonly(device):
        raise InvalidArgument(
            "device path /: a VM writes to its root disk: take readOnly away from the volume"
        )
    path = block_device(device)
    uid, gid = node.user_of(vm)
    with _claimed(path, os.O_RDWR) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END) // SECTOR * SECTOR
        found = _version_of_image(descriptor, path, vm)
        version = found or (2 if flavor.tpm or flavor.firmware == "uefi" else 1)
        start = _STARTS[version]
        needed = start + vm.image.virtual_size
        if size < needed:
            raise FailedPrecondition(
                f"device path /: {path} has {size} bytes, and the image takes {needed} with its "
                "header: use a larger volume, or a smaller image"
            )
        own = vm.directory / FILE_NAME
        make_device_node(path, own, uid, gid, readonly=False)
        if not found:
            _write(
                descriptor,
                own,
                size,
                version,
                vm,
                Confinement(uid=uid, gid=gid, groups=(node.emulator_gid,), network=False),
            )
    return Disk(
        path=own,
        format="raw",
        block=True,
        serial="root",
        offset=start,
        size=size - start,
        state_offset=_STATE if version > 1 else 0,
        state_size=start - _STATE if version > 1 else 0,
    )


def hold(vm: Vm, device: Device) -> LaunchPart:
    """Keep the device for the VM as long as its emulator runs: the descriptor claims it.

    Raises:
        FailedPrecondition: it is in use, gone, or has another image by now.
    """
    path = block_device(device)
    with _claimed(path, os.O_RDONLY) as descriptor:
        if not _version_of_image(descriptor, path, vm):
            raise FailedPrecondition(
                f"device path /: {path} was written by another VM after {vm.name} was made: make "
                "a new attempt"
            )
        return LaunchPart(fds=(LaunchFd(name=FILE_NAME, fd=os.dup(descriptor)),))


@contextlib.contextmanager
def _claimed(path: Path, access: int) -> Iterator[int]:
    """The device, open, and nobody else's: an open(2) with O_EXCL claims a block device until the
    last descriptor is closed, against other claims and mounts."""
    try:
        descriptor = os.open(path, access | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPrecondition(
                f"device path /: {path} is in use: another VM of this node runs from it, or it is "
                "mounted: end that first"
            ) from None
        raise FailedPrecondition(f"device path /: {path}: {error.strerror}") from None
    try:
        yield descriptor
    except OSError as error:
        raise FailedPrecondition(f"device path /: {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _version_of_image(descriptor: int, path: Path, vm: Vm) -> int:
    """The version of a header that is whole and that of the VM's image; 0 for any other.

    Raises:
        FailedPrecondition: a newer Virtlet wrote it.
    """
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return 0
    magic, version, _ = _HEADER.unpack(header)
    if magic == _MAGIC and version > _VERSION:
        raise FailedPrecondition(
            f"device path /: {path} has a header of version {version}, and this Virtlet knows "
            f"{_VERSION}: use the newer one, or clear the first sector to start from the image"
        )
    return version if version in _STARTS and header == _header_of(vm, version) else 0


def _header_of(vm: Vm, version: int) -> bytes:
    return _HEADER.pack(_MAGIC, version, bytes.fromhex(vm.image.id.removeprefix("sha256:")))


def _write(
    descriptor: int, own: Path, size: int, version: int, vm: Vm, confinement: Confinement
) -> None:
    """Write header and image, so that the header is whole only if all is.

    Args:
        descriptor: the device, open for writing.
        own: its node that the VM's user can open.
        size: bytes of the device.
        version: of the header.
        vm: whose image.
        confinement: that user.
    """
    start = _STARTS[version]
    os.pwrite(descriptor, bytes(start), 0)
    end = min(_END, size - start)
    os.pwrite(descriptor, bytes(end), size - end)
    os.fsync(descriptor)
    target = f"driver=raw,offset={start},file.driver=host_device,file.filename={own.absolute()}"
    command = ["qemu-img", "convert", "-q", "-n", "-f", vm.image.format]
    command += [str(vm.image.path.absolute()), "--target-image-opts", target]
    run(command, timeout=_TIMEOUT, limits=_LIMITS, confinement=confinement, package="qemu-utils")
    os.fsync(descriptor)
    os.pwrite(descriptor, _header_of(vm, version).ljust(SECTOR, b"\0"), 0)
    os.fsync(descriptor)
