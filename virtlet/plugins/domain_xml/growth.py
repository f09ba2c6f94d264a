"""What of a machine can change while it runs: room for vCPUs and memory.

Source: "CPU Allocation", "Memory Allocation" and "Memory devices" of libvirt's domain XML format.
"""

from xml.etree.ElementTree import Element, SubElement

from attrs import frozen

from virtlet.host.cpus import cpuset
from virtlet.model.vm import Machine

_MIB = 1 << 20
BLOCK = 2 * _MIB
"""Granularity of a virtio-mem device: a huge page."""
_GUEST_BLOCK = 128 * _MIB
"""Linux on x86 adds memory in blocks of at least this size; a part of one is of no use to it."""


@frozen
class Growth:
    """Room to grow; renders nothing for a machine that has none."""

    vcpus: int
    """vCPUs at the start."""
    most_vcpus: int
    memory: int
    """Bytes at the start."""
    device: int
    """Bytes of the virtio-mem device; 0 for none."""
    cpus: str
    """CPUs of the node that the machine may run on; "" for all."""

    @property
    def block(self) -> int:
        """Bytes of the device's smallest change."""
        return BLOCK

    @property
    def total(self) -> int:
        """Bytes of all memory, that of the device included."""
        return self.memory + self.device


def growth_of(machine: Machine) -> Growth:
    """Find a machine's room to grow.

    Raises:
        InvalidArgument: its cpuset is none, or names absent CPUs.
    """
    flavor = machine.flavor
    more = max(flavor.max_memory - flavor.memory, 0)
    cpus = machine.vm.config.resources.cpuset_cpus
    return Growth(
        vcpus=flavor.vcpus,
        most_vcpus=max(flavor.vcpus, flavor.max_vcpus),
        memory=flavor.memory,
        device=-(-more // _GUEST_BLOCK) * _GUEST_BLOCK,
        cpus=",".join(map(str, sorted(cpuset(cpus)))) if cpus else "",
    )


def with_node(cpu: Element | None, growth: Growth) -> Element | None:
    """A `<cpu>` element with the NUMA node that a memory device belongs to.

    Args:
        cpu: the element, which is changed.
        growth: the machine's; without a device the element stays as it is.
    """
    if not growth.device:
        return cpu
    if cpu is None:
        cpu = Element("cpu")
    if cpu.find("numa") is None:
        numa = SubElement(cpu, "numa")
        last = growth.most_vcpus - 1
        node = {"id": "0", "cpus": f"0-{last}" if last else "0"}
        SubElement(numa, "cell", node | {"memory": str(growth.memory), "unit": "b"})
    return cpu
