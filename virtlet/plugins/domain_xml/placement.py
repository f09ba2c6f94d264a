"""Where a machine's vCPUs, emulator and memory are on the node.

Source: "CPU Tuning", "NUMA Node Tuning" and "Guest NUMA topology" of libvirt's domain XML format.
"""

from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.host.cpus import NODES, core_of, cpuset, nodes_of
from virtlet.model.vm import Machine

_MIB = 1 << 20


@frozen
class Cell:
    """A memory node of the guest."""

    node: int
    """Of the machine, where its memory is."""
    vcpus: tuple[int, ...]
    memory: int
    """Bytes."""


@frozen
class Placement:
    """Nothing, for a machine that the kernel places."""

    pins: tuple[int, ...] = ()
    """CPU of each vCPU."""
    emulator: str = ""
    """CPUs of the emulator's other threads, as a list."""
    cells: tuple[Cell, ...] = ()

    @property
    def nodes(self) -> str:
        """Memory nodes of the machine, as a list."""
        return _list(cell.node for cell in self.cells)


def placement_of(machine: Machine, nodes: Path = NODES.parent) -> Placement:
    """Give each vCPU a CPU; threads of a core, and what is on one memory node, stay together.

    Raises:
        InvalidArgument: there are fewer CPUs than vCPUs.
    """
    flavor = machine.flavor
    if not flavor.dedicated_cpus:
        return Placement()
    cpus = cpuset(machine.vm.config.resources.cpuset_cpus)
    if len(cpus) < flavor.vcpus:
        raise InvalidArgument(
            f"VM {machine.vm.name} has {len(cpus)} CPUs of its own for {flavor.vcpus} vCPUs"
        )
    here = nodes_of(cpus, nodes)
    node_of = {cpu: node for node, some in here.items() for cpu in some}
    ordered = sorted(cpus, key=lambda cpu: (node_of.get(cpu, 0), core_of(cpu), cpu))
    pins = tuple(ordered[: flavor.vcpus])
    emulator = _list(ordered[flavor.vcpus :] or ordered)
    if not flavor.numa:
        return Placement(pins, emulator)
    used = sorted({node_of[cpu] for cpu in pins})
    page = flavor.page_size or _MIB
    each, more = divmod(flavor.memory // page, len(used))
    cells = tuple(
        Cell(
            node=node,
            vcpus=tuple(vcpu for vcpu, cpu in enumerate(pins) if node_of[cpu] == node),
            memory=(each + (number < more)) * page,
        )
        for number, node in enumerate(used)
    )
    return Placement(pins, emulator, cells)


def with_cells(cpu: Element | None, placement: Placement) -> Element | None:
    """A `<cpu>` element with the guest's memory nodes.

    Args:
        cpu: the element, which is changed; without nodes it stays as it is.
        placement: of the machine.
    """
    if not placement.cells:
        return cpu
    if cpu is None:
        cpu = Element("cpu")
    numa = SubElement(cpu, "numa")
    for number, cell in enumerate(placement.cells):
        made = {"id": str(number), "cpus": _list(cell.vcpus)}
        SubElement(numa, "cell", made | {"memory": str(cell.memory), "unit": "b"})
    return cpu


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))
