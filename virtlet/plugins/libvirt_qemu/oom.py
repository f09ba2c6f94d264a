"""Telling an emulator that ran out of memory from one that died of something else.

The kernel counts the processes that its OOM killer took in each memory cgroup: `oom_kill` in
memory.events (v2) and in memory.oom_control (v1).
"""

from pathlib import Path

from attrs import frozen

_ROOT = Path("/sys/fs/cgroup")


@frozen
class _Count:
    """How many were killed in a cgroup when the emulator started there."""

    file: Path
    killed: int


class OomWatch:
    """Remembers the counters of running emulators' cgroups."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def begin(self, vm_id: str, pid: int) -> None:
        """Take the counter of a running emulator's cgroup as it is now."""
        file = _counter(pid)
        killed = _killed(file) if file else None
        if file is not None and killed is not None:
            self._counts[vm_id] = _Count(file, killed)

    def end(self, vm_id: str) -> bool:
        """Whether the OOM killer was in the emulator's cgroup since; forgets the VM."""
        before = self._counts.pop(vm_id, None)
        if before is None:
            return False
        after = _killed(before.file)
        return after is not None and after > before.killed


def _counter(pid: int) -> Path | None:
    """The file with the counter of the memory cgroup a process is in; see cgroups(7)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    unified = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/") / "memory.oom_control"
        if not controllers:
            unified = _ROOT / path.lstrip("/") / "memory.events"
    return unified


def _killed(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
