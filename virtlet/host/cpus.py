"""CPUs and memory nodes of this machine, lists of them, huge pages, and shares of CPU time.

Sources: "List format" in cpuset(7); sched-bwc.rst of the Linux documentation; "Guest NUMA topology"
and "Memory Allocation" of the domain XML format.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from virtlet.errors import InvalidArgument

SYSTEM = Path("/sys")
CPUS = SYSTEM / "devices/system/cpu/online"
NODES = SYSTEM / "devices/system/node/online"
_LONGEST = 4096
"""Characters of a list: a thousand ranges."""
_HIGHEST = 1 << 16
"""No kernel has that many CPUs; keeps a range from filling memory."""
SHORTEST = 1000
"""Microseconds: the kernel's smallest quota and period of CPU time."""
LONGEST_PERIOD = 1_000_000
"""Microseconds."""


def parse_list(text: str) -> frozenset[int]:
    """The numbers of a list such as `0-3,8`.

    Raises:
        ValueError: it is none, or is empty.
    """
    found: set[int] = set()
    if len(text) > _LONGEST:
        raise ValueError("the list is too long")
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        bounds = [first, last] if dash else [first]
        if not all(bound.isascii() and bound.isdigit() and len(bound) <= 5 for bound in bounds):
            raise ValueError("it must be a list of numbers and ranges, as 0-3,8")
        low, high = int(bounds[0]), int(bounds[-1])
        if low > high or high >= _HIGHEST:
            raise ValueError("a range in it runs backwards or too far")
        found.update(range(low, high + 1))
    return frozenset(found)


def cpuset(text: str, online: Path = CPUS) -> frozenset[int]:
    """The CPUs that a request may name.

    Raises:
        InvalidArgument: it is no list, or one of them is not online here.
    """
    return _present(text, "cpuset_cpus", "CPU", online)


def everywhere(online: Path = CPUS) -> frozenset[int]:
    """All CPUs that are online."""
    return parse_list(online.read_text())


def memset(text: str, online: Path = NODES) -> frozenset[int]:
    """The memory nodes that a request may name.

    Raises:
        InvalidArgument: it is no list, or one of them is not here.
    """
    return _present(text, "cpuset_mems", "memory node", online)


def check_time(quota: int, period: int, field: str) -> None:
    """Refuse a limit of CPU time that the kernel does not know.

    Args:
        quota: microseconds for each period; 0 is unset and -1 lifts the limit.
        period: microseconds; 0 is unset.
        field: where in the request both stand, for messages.

    Raises:
        InvalidArgument: one is too small or too great.
    """
    if quota not in (-1, 0) and quota < SHORTEST:
        raise InvalidArgument(
            f"{field}.cpu_quota {quota} must be {SHORTEST} microseconds or more, or -1 for no limit"
        )
    if period and not SHORTEST <= period <= LONGEST_PERIOD:
        raise InvalidArgument(
            f"{field}.cpu_period {period} must be {SHORTEST} to {LONGEST_PERIOD} microseconds"
        )


def _present(text: str, field: str, what: str, online: Path) -> frozenset[int]:
    try:
        wanted = parse_list(text)
    except ValueError as error:
        raise InvalidArgument(f"{field} {text[:64]!r}: {error}") from None
    # A kernel without NUMA has one node and no file.
    here = online.read_text().strip() if online.exists() else "0"
    missing = wanted - parse_list(here)
    if missing:
        raise InvalidArgument(
            f"{field} {text[:64]!r}: this node has no {what} {min(missing)}; it has {here}"
        )
    return wanted


_UNITS = {"b": 1, "bytes": 1, "": 1 << 10}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1 << 10 * power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {letter: _UNITS[f"{letter}ib"] for letter in "kmgt"}
"""Bytes of the units of memory in domain documents, in lower case."""


def numa_memory(cpu: Element) -> int:
    """Bytes of all NUMA cells of a domain document's `<cpu>` element: so large the machine becomes.

    Raises:
        ValueError: a cell's memory is not a whole number of a known unit.
    """
    total = 0
    for cell in cpu.iterfind("numa/cell"):
        memory, unit = cell.get("memory", ""), cell.get("unit", "").lower()
        if not (memory.isascii() and memory.isdigit() and len(memory) <= 20) or unit not in _UNITS:
            raise ValueError("a NUMA cell needs a memory in a unit such as MiB")
        total += int(memory) * _UNITS[unit]
    return total


def nodes_of(cpus: frozenset[int], nodes: Path = NODES.parent) -> Mapping[int, frozenset[int]]:
    """The memory nodes that CPUs are on: node to those of the CPUs."""
    found = {}
    for directory in nodes.glob("node[0-9]*"):
        text = (directory / "cpulist").read_text().strip()
        if text and (here := parse_list(text) & cpus):
            found[int(directory.name.removeprefix("node"))] = here
    return dict(sorted(found.items()))


def core_of(cpu: int, cpus: Path = CPUS.parent) -> int:
    """The first CPU of the core that a CPU is a thread of."""
    try:
        return min(parse_list((cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text()))
    except (OSError, ValueError):
        return cpu


def free_pages(size: int, node: int | None = None, system: Path = SYSTEM) -> int | None:
    """How many huge pages are free.

    Args:
        size: bytes of a page.
        node: memory node; None for the whole machine.
        system: directory of the kernel's devices, /sys but in tests.

    Returns:
        None where the kernel has no pages of this size.
    """
    above = "kernel/mm" if node is None else f"devices/system/node/node{node}"
    try:
        directory = system / above / f"hugepages/hugepages-{size >> 10}kB"
        free = int((directory / "free_hugepages").read_text())
        if node is None:
            # Promised to mappings that have not touched them yet.
            free -= int((directory / "resv_hugepages").read_text())
        return max(free, 0)
    except (OSError, ValueError):
        return None
