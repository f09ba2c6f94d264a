"""A process's consumption, from /proc.

Source: proc_pid_stat(5) and proc_pid_status(5).
"""

from pathlib import Path

from attrs import frozen

PROC = Path("/proc")


@frozen
class ProcessMemory:
    """Memory of one process."""

    resident: int = 0
    """Bytes."""
    file_backed: int = 0
    """Bytes of it that mapped files hold."""
    minor_faults: int = 0
    major_faults: int = 0


def process_memory(pid: int) -> ProcessMemory | None:
    """Memory of a process, or None when it is gone."""
    try:
        status = (PROC / str(pid) / "status").read_text()
        # The name in parentheses may hold anything, spaces too: count from its end.
        stat = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    sizes = dict.fromkeys(("VmRSS", "RssFile"), 0)
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    # Fields 10 and 12 of stat; the list starts with field 3.
    return ProcessMemory(sizes["VmRSS"], sizes["RssFile"], int(stat[7]), int(stat[9]))
