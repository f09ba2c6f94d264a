"""A process's consumption, from /proc.

Source: proc_pid_stat(5), proc_pid_status(5), proc_pid_fd(5) and proc_pid_limits(5).
"""

import os
from pathlib import Path

from attrs import frozen

PROC = Path("/proc")
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_MOST = 1 << 16
"""Bytes; these files have one or two thousand."""
_OPEN_FILES = "Max open files"


@frozen
class ProcessUsage:
    """What one process uses."""

    user: int
    """Nanoseconds of CPU, in steps of the kernel's clock tick."""
    system: int
    """Nanoseconds."""
    started: int
    """The tick of its start: no other process of the same id has it."""
    threads: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    resident: int = 0
    """Bytes."""
    file_backed: int = 0
    """Bytes of it that mapped files hold."""
    swapped: int = 0
    """Bytes of it that the node has swapped out."""


@frozen
class ProcessFiles:
    """What one process has open."""

    descriptors: int
    sockets: int
    most: int | None
    """Descriptors that it may have; None for any number."""


def process_usage(pid: int) -> ProcessUsage | None:
    """What a process uses, or None when it is gone."""
    try:
        status = _text(pid, "status")
        # The name in parentheses may hold anything, spaces too: count from its end.
        stat = _text(pid, "stat").rpartition(")")[2].split()
    except OSError:
        return None
    sizes = dict.fromkeys(("VmRSS", "RssFile", "VmSwap"), 0)
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    # The list starts with field 3.
    return ProcessUsage(
        user=int(stat[11]) * _TICK,
        system=int(stat[12]) * _TICK,
        started=int(stat[19]),
        threads=int(stat[17]),
        minor_faults=int(stat[7]),
        major_faults=int(stat[9]),
        resident=sizes["VmRSS"],
        file_backed=sizes["RssFile"],
        swapped=sizes["VmSwap"],
    )


def process_files(pid: int) -> ProcessFiles | None:
    """What a process has open, or None when it is gone."""
    directory = f"{PROC}/{pid}/fd"
    try:
        targets = [_target(f"{directory}/{name}") for name in os.listdir(directory)]
        limits = _text(pid, "limits")
    except OSError:
        return None
    line = next((line for line in limits.splitlines() if line.startswith(_OPEN_FILES)), "")
    soft = line.removeprefix(_OPEN_FILES).split()[:1]
    sockets = sum(target.startswith("socket:") for target in targets)
    return ProcessFiles(len(targets), sockets, int(soft[0]) if soft and soft[0].isdigit() else None)


def _text(pid: int, name: str) -> str:
    # Not by pathlib, which takes four times as long: this is read for every VM at each question.
    descriptor = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY)
    try:
        return os.read(descriptor, _MOST).decode(errors="replace")
    finally:
        os.close(descriptor)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
