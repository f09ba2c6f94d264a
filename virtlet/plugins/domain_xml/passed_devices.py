"""The node's devices in a machine: on which bus, and how much room they take.

Source: "Host device assignment" and "Controllers" of libvirt's domain XML format.
"""

from attrs import frozen

from virtlet.model.disk import HostDevice, host_devices
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.placement import Placement

_LAST_BUS, _BUSES = 240, 16
"""Number of the first memory node's bus, and how many each has below it."""
_MOST_CELLS = 8
_PORTS = 8
"""Devices of a memory node that have a port there; more would not get numbers."""
_USUAL_HOLE = 32 << 30
"""Bytes of room that machines have without being asked."""


@frozen
class PlacedDevice:
    """A device, and the port of its memory node that it is in."""

    device: HostDevice
    port: int = 0
    """Index of the controller; 0 leaves the place to libvirt."""

    @property
    def domain(self) -> str:
        """First part of a PCI address."""
        return self.device.address.split(":")[0]

    @property
    def bus(self) -> str:
        """Second part of a PCI address."""
        return self.device.address.split(":")[1]

    @property
    def slot(self) -> str:
        """Third part of a PCI address."""
        return self.device.address.split(":")[2].split(".")[0]

    @property
    def function(self) -> str:
        """Last part of a PCI address."""
        return self.device.address.split(".")[1]


@frozen
class NodeBus:
    """A bus that the guest finds on one of its memory nodes."""

    index: int
    """Of its controller."""
    number: int
    cell: int
    """The guest's memory node."""
    ports: tuple[int, ...]
    """Indexes of the controllers that are its ports."""


@frozen
class DevicesOfNode:
    """All of a machine's."""

    all: tuple[PlacedDevice, ...]
    buses: tuple[NodeBus, ...]
    hole: int
    """Bytes of room that they take above the guest's memory; 0 where the usual does."""


def passed_devices(machine: Machine, placement: Placement) -> DevicesOfNode:
    """Put devices near the memory of their node, where the guest has a part of that.

    Args:
        machine: whose devices.
        placement: of the machine, on PCI Express.
    """
    left = [device for group in host_devices(machine.volumes) for device in group.devices]
    # A NIC that a device plugin has brought too is one device.
    known = {device.address for device in left}
    left += [
        HostDevice(kind="pci", address=nic.device)
        for nic in machine.network.nics
        if nic.kind == "vfio" and nic.device not in known
    ]
    # The next power of two holds all of them, each at a multiple of its own size.
    room = 1 << max(sum(device.bars for device in left) - 1, 0).bit_length()
    placed: list[PlacedDevice] = []
    buses: list[NodeBus] = []
    index = 1
    for number, cell in enumerate(placement.cells[:_MOST_CELLS]):
        here = [device for device in left if device.numa_node == cell.node][:_PORTS]
        if not here:
            continue
        ports = tuple(range(index + 1, index + 1 + len(here)))
        buses.append(NodeBus(index, _LAST_BUS - number * _BUSES, number, ports))
        placed += map(PlacedDevice, here, ports)
        index = ports[-1] + 1
        left = [device for device in left if device not in here]
    placed += map(PlacedDevice, left)
    return DevicesOfNode(tuple(placed), tuple(buses), 2 * room if 2 * room > _USUAL_HOLE else 0)
