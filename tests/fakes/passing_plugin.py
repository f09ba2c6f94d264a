"""The built-in plugin of passed-through devices, on a node whose devices are a tree of files.

All that it does to the node is real: the look into sysfs, the VM's own node of its group, the parts
of the jail. Only the emulator, which would find no device behind that node, has none in its
document.
"""

import os
from pathlib import Path
from xml.etree.ElementTree import Element

from tests.fakes.devices import Tree
from virtlet import hookimpl
from virtlet.model.vm import Machine
from virtlet.plugins.devices import plugin

TREE = "PASSED_DEVICES"
"""Environment variable of the manager: where the tree is."""
GROUP = "dev/vfio/7"


def make_tree(root: Path) -> None:
    """A GPU that is alone in its IOMMU group, with character devices that can be opened."""
    tree = Tree(root)
    tree.node("vfio")
    tree.pci("0000:65:00.0", 7, "vfio-pci")


class Plugin(plugin.Plugin):
    """Serves groups of the tree."""

    def __init__(self) -> None:
        tree = Tree(Path(os.environ[TREE]))
        super().__init__(tree.nodes, tree.system)

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        """Leave the emulator without the device, but for the room that it has."""
        devices = domain.find("devices")
        assert devices is not None
        passed = devices.findall("hostdev")
        assert passed, "the document has no device"
        for element in passed:
            devices.remove(element)
