"""Root disks that are full raw copies of the image."""

import logging
import os

from virtlet.api import (
    CommandLimits,
    Disk,
    Flavor,
    Node,
    Settings,
    Vm,
    hookimpl,
    new_disk_file,
    remove_file,
    run,
)

log = logging.getLogger(__name__)
"""Its lines are in the manager's log, with the pod's and the VM's ids and names."""

SECTOR = 512
COPY_SECONDS = 600
"""A copy that takes longer is given up."""


class Plugin:
    """Answers before the built-in qcow2 overlays, for the handlers that name it."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Learn which user the emulator runs as: the disk has to be that user's."""
        self.node = node

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk:
        """Copy the image; zeros take no space."""
        image = vm.image
        size = max(flavor.root_size, image.virtual_size)
        path = vm.directory / "root.raw"
        node = self.node
        with new_disk_file(path, node.emulator_uid, node.emulator_gid) as descriptor:
            target = f"/proc/self/fd/{descriptor}"
            run(
                ["qemu-img", "convert", "-f", image.format, "-O", "raw", str(image.path), target],
                timeout=COPY_SECONDS,
                limits=CommandLimits(cpu_seconds=COPY_SECONDS),
                pass_fds=(descriptor,),
            )
            os.ftruncate(descriptor, -(-size // SECTOR) * SECTOR)
        log.info("root disk copied", extra={"bytes": size})
        return Disk(path=path, format="raw")

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: Disk | None) -> None:
        """Remove the copy, finished or not; `disk` is None after a crash."""
        remove_file(vm.directory / "root.raw")
