"""What a control group uses, by the kernel's own counters, version 1 or 2.

Sources: cgroup-v2.rst, cgroup-v1/ and accounting/psi.rst of the Linux documentation. All figures
are those of a group with the groups below it; None where the kernel tells nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from virtlet.host import cgroups

_MICRO, _TICK = 1000, 10_000_000
"""Nanoseconds; the kernel shows users 100 ticks a second."""
_ENDLESS = 1 << 62
_IN_BOTH = ("cpu.stat",)
"""Files of version 1 that a version 2 without controllers beside it has too."""


@frozen
class Memory:
    """Bytes, where a unit is not said."""

    usage: int
    working_set: int
    """Without files that were not touched lately: those go when somebody needs the memory."""
    rss: int
    cache: int
    mapped: int
    page_faults: int
    major_page_faults: int
    swap: int | None = None
    kernel: int | None = None
    most: int | None = None
    """The most that was ever used."""
    limit: int = 0
    """0 for none."""
    limit_hits: int | None = None
    """How often the limit stood in the way."""


@frozen
class CpuTime:
    """Nanoseconds, where a unit is not said."""

    used: int
    user: int | None = None
    system: int | None = None


@frozen
class Throttling:
    """What a CPU quota did."""

    periods: int
    throttled: int
    """Periods."""
    time: int
    """Nanoseconds."""


@frozen
class DeviceIo:
    """What went between a group and one block device."""

    device: str
    """`MAJOR:MINOR`."""
    read_bytes: int = 0
    reads: int = 0
    written_bytes: int = 0
    writes: int = 0


@frozen
class Pressure:
    """Nanoseconds in which work stood still for want of something."""

    waiting: int
    """Some of it."""
    stalled: int
    """All of it."""


class CgroupUsage:
    """Reads groups; whether they are there is for the kernel to say.

    Args:
        mounts: the kernel's table of mounts.
    """

    def __init__(self, mounts: Path = cgroups.MOUNTS) -> None:
        # Where both versions are mounted, the controllers are with version 1.
        found = sorted(cgroups.hierarchies(mounts), key=lambda hierarchy: hierarchy.unified)
        self._mounts = tuple(hierarchy.mount for hierarchy in found)
        self._where: dict[str, Path] = {}

    def holds(self, group: Path) -> bool:
        """Whether there is such a group."""
        return any((mount / group).is_dir() for mount in self._mounts)

    def cpu(self, group: Path) -> CpuTime | None:
        """CPU time of a group."""
        used = self._number(group, "cpuacct.usage")
        if used is not None:
            ticks = self._table(group, "cpuacct.stat")
            return CpuTime(used, ticks.get("user", 0) * _TICK, ticks.get("system", 0) * _TICK)
        told = self._table(group, "cpu.stat")
        if "usage_usec" not in told:
            return None
        used, user, system = (
            told.get(f"{name}_usec", 0) * _MICRO for name in ("usage", "user", "system")
        )
        return CpuTime(used, user, system)

    def throttling(self, group: Path) -> Throttling | None:
        """What the group's own quota did."""
        told = self._table(group, "cpu.stat")
        if "nr_periods" not in told:
            return None
        time = told.get("throttled_time", told.get("throttled_usec", 0) * _MICRO)
        return Throttling(told["nr_periods"], told.get("nr_throttled", 0), time)

    def memory(self, group: Path) -> Memory | None:
        """Memory of a group."""
        usage = self._number(group, "memory.usage_in_bytes")
        if usage is not None:
            return self._memory_v1(group, usage)
        usage = self._number(group, "memory.current")
        if usage is None:
            return None
        told = self._table(group, "memory.stat")
        return Memory(
            usage=usage,
            working_set=max(0, usage - told.get("inactive_file", 0)),
            rss=told.get("anon", 0),
            cache=told.get("file", 0),
            mapped=told.get("file_mapped", 0),
            page_faults=told.get("pgfault", 0),
            major_page_faults=told.get("pgmajfault", 0),
            swap=self._number(group, "memory.swap.current"),
            kernel=told.get("kernel"),
            most=self._number(group, "memory.peak"),
            limit=_limit(self._text(group, "memory.max")),
            limit_hits=self._table(group, "memory.events").get("max"),
        )

    def _memory_v1(self, group: Path, usage: int) -> Memory:
        told = self._table(group, "memory.stat")
        return Memory(
            usage=usage,
            working_set=max(0, usage - told.get("total_inactive_file", 0)),
            rss=told.get("total_rss", 0),
            cache=told.get("total_cache", 0),
            mapped=told.get("total_mapped_file", 0),
            page_faults=told.get("total_pgfault", 0),
            major_page_faults=told.get("total_pgmajfault", 0),
            swap=told.get("total_swap"),
            kernel=self._number(group, "memory.kmem.usage_in_bytes"),
            most=self._number(group, "memory.max_usage_in_bytes"),
            limit=_limit(self._text(group, "memory.limit_in_bytes")),
            limit_hits=self._number(group, "memory.failcnt"),
        )

    def oom_kills(self, group: Path) -> int | None:
        """Processes of the group that ran into the end of memory."""
        for file in ("memory.oom_control", "memory.events"):
            killed = self._table(group, file).get("oom_kill")
            if killed is not None:
                return killed
        return None

    def io(self, group: Path) -> tuple[DeviceIo, ...]:
        """What went to and from block devices."""
        counts: dict[str, dict[str, int]] = {}
        for file, what in (
            ("blkio.throttle.io_service_bytes_recursive", "bytes"),
            ("blkio.throttle.io_serviced_recursive", "times"),
        ):
            for line in (self._text(group, file) or "").splitlines():
                if len(fields := line.split()) == 3:
                    device, kind, value = fields
                    counts.setdefault(device, {})[f"{kind} {what}"] = int(value)
        if counts:
            return tuple(
                DeviceIo(
                    device,
                    read_bytes=told.get("Read bytes", 0),
                    reads=told.get("Read times", 0),
                    written_bytes=told.get("Write bytes", 0),
                    writes=told.get("Write times", 0),
                )
                for device, told in counts.items()
            )
        return tuple(self._io_v2(group))

    def _io_v2(self, group: Path) -> Iterator[DeviceIo]:
        for line in (self._text(group, "io.stat") or "").splitlines():
            device, *pairs = line.split()
            told = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
            yield DeviceIo(
                device,
                read_bytes=told.get("rbytes", 0),
                reads=told.get("rios", 0),
                written_bytes=told.get("wbytes", 0),
                writes=told.get("wios", 0),
            )

    def pressure(self, group: Path, resource: str) -> Pressure | None:
        """How a group is short of `cpu`, `memory` or `io`."""
        text = self._text(group, f"{resource}.pressure")
        if text is None:
            return None
        totals = {"some": 0, "full": 0}
        for line in text.splitlines():
            kind, *pairs = line.split()
            for pair in pairs:
                key, _, value = pair.partition("=")
                if key == "total" and kind in totals:
                    totals[kind] = int(value) * _MICRO
        return Pressure(totals["some"], totals["full"])

    def most_threads(self, group: Path) -> int | None:
        """How many threads a group may have; 0 for any number."""
        text = self._text(group, "pids.max")
        if text is None:
            return None
        return 0 if text.strip() == "max" else int(text)

    def _number(self, group: Path, file: str) -> int | None:
        text = self._text(group, file)
        return None if text is None else int(text)

    def _table(self, group: Path, file: str) -> Mapping[str, int]:
        """A file of lines with a name and a number."""
        pairs = (line.partition(" ") for line in (self._text(group, file) or "").splitlines())
        return {name: int(value) for name, _, value in pairs if value.strip().isdecimal()}

    def _text(self, group: Path, file: str) -> str | None:
        """A file of a group, in whichever hierarchy has it."""
        known = self._where.get(file)
        for mount in (known,) if known else self._mounts:
            try:
                text = (mount / group / file).read_text()
            except OSError:
                # EOPNOTSUPP too, where the kernel was started without pressure.
                continue
            if file not in _IN_BOTH:
                self._where[file] = mount
            return text
        return None


def _limit(text: str | None) -> int:
    """Bytes; 0 for none, which is a word in version 2 and nearly 2**63 in version 1."""
    value = int(text) if text is not None and text.strip().isdecimal() else 0
    return value if value < _ENDLESS else 0
