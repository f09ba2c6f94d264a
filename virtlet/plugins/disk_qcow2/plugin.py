"""Hook implementations of the qcow2 root disk."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.host.files import remove_file
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Settings
from virtlet.model.vm import Vm
from virtlet.plugins.disk_qcow2.annotations import FILES_FROM
from virtlet.plugins.disk_qcow2.overlay import FILE_NAME, FORMATS, create_overlay


class Plugin:
    """Gives every VM a qcow2 overlay on its image."""

    VIRTLET_HOOK_API = 1

    _node: Node

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare what is refused for now."""
        return [FILES_FROM]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Learn the emulator's user."""
        self._node = node

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk | None:
        """Make `root.qcow2` in the VM's directory; images that are no disks are not ours."""
        if vm.image.format not in FORMATS:
            return None
        return create_overlay(
            vm, flavor.root_size, self._node.emulator_uid, self._node.emulator_gid
        )

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: Disk | None) -> None:
        """Remove `root.qcow2`, finished or not."""
        remove_file(vm.directory / FILE_NAME)
