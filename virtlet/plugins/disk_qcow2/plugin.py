"""The hooks of root disks: qcow2 overlays of images, with what the VM has written."""

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.host.commands import clean_environment, run
from virtlet.host.files import new_disk_file, remove_file
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.model.vm import Vm

_SECTOR = 512
FILE_NAME = "root.qcow2"
FORMATS = ("qcow2", "raw")
"""Of images that can back an overlay."""


def create_overlay(vm: Vm, size: int, uid: int, gid: int) -> Disk:
    """Make the root disk of a VM in its directory, owned by the emulator's user.

    qemu-img is told all that it would otherwise read from the image (`-u`), which is not trusted.
    It writes to our descriptor instead of a path in a directory of the emulator's user.

    Args:
        vm: whose disk; it is backed by `vm.image`.
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
        run(command, env=clean_environment(), pass_fds=(descriptor,), package="qemu-utils")
    return Disk(
        path=path, format="qcow2", backing=image.path, backing_format=image.format, serial="root"
    )


class Plugin:
    """Gives every VM a qcow2 overlay on its image."""

    VIRTLET_HOOK_API = 1

    _node: Node

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the emulator's user."""
        self._node = node

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk | None:
        """Make `root.qcow2` in the VM's directory; only for images that are disks."""
        if vm.image.format not in FORMATS:
            return None
        return create_overlay(
            vm, flavor.root_size, self._node.emulator_uid, self._node.emulator_gid
        )

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: Disk | None) -> None:
        """Remove `root.qcow2`, finished or not."""
        remove_file(vm.directory / FILE_NAME)
