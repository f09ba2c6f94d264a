"""Root disks are full copies of the image."""

import os

from virtlet.api import Disk, Flavor, Node, Settings, Vm, hookimpl, new_disk_file, remove_file, run

SECTOR = 512
COPY_SECONDS = 600


class Plugin:
    """Makes the disk that a VM boots from, and takes it away."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the emulator's user, whose the disk has to be."""
        self._uid, self._gid = node.emulator_uid, node.emulator_gid

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk | None:
        """Make the disk below `vm.directory`; None would leave it to other plugins."""
        image = vm.image
        size = max(flavor.root_size, image.virtual_size)
        path = vm.directory / "root.raw"
        with new_disk_file(path, self._uid, self._gid) as descriptor:
            target = f"/proc/self/fd/{descriptor}"
            convert = ["qemu-img", "convert", "-f", image.format, "-O", "raw"]
            run(
                [*convert, str(image.path), target],
                timeout=COPY_SECONDS,
                pass_fds=(descriptor,),
            )
            os.ftruncate(descriptor, -(-size // SECTOR) * SECTOR)
        return Disk(path=path, format="raw")

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: Disk | None) -> None:
        """Remove it, finished or not; `disk` is None after a crash or an error."""
        remove_file(vm.directory / "root.raw")
