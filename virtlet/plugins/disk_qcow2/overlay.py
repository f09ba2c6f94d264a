"""Making the qcow2 overlay a VM writes to."""

from virtlet.errors import FailedPrecondition
from virtlet.host.commands import run
from virtlet.host.files import new_disk_file
from virtlet.model.disk import Disk
from virtlet.model.vm import Vm

_SECTOR = 512
FILE_NAME = "root.qcow2"
FORMATS = ("qcow2", "raw")
"""Of the images that an overlay stands on."""


def create_overlay(vm: Vm, size: int, uid: int, gid: int) -> Disk:
    """Make the root disk of a VM in its directory, owned by the emulator's user.

    qemu-img is told everything it would otherwise look up in the image (`-u`), so that it
    neither trusts nor reads it, and writes to our descriptor instead of a path in a directory
    that is the emulator user's.

    Args:
        vm: whose disk; it stands on `vm.image`.
        size: bytes the guest should see; never less than the image's.
        uid: user of the emulator.
        gid: group of the emulator.

    Raises:
        FailedPrecondition: the image's file is gone.
    """
    image = vm.image
    if not image.path.is_file():
        raise FailedPrecondition(f"image {image.id} is not in the store any more: pull it again")
    sectors = -(-max(size, image.virtual_size) // _SECTOR)
    path = vm.directory / FILE_NAME
    with new_disk_file(path, uid, gid) as descriptor:
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2"]
        command += ["-F", image.format, "-b", str(image.path.absolute())]
        command += [f"/proc/self/fd/{descriptor}", str(sectors * _SECTOR)]
        run(command, pass_fds=(descriptor,), package="qemu-utils")
    return Disk(path=path, format="qcow2", backing=image.path, backing_format=image.format)
