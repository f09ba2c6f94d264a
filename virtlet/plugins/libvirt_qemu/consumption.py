"""What running domains consume, out of libvirt's bulk statistics.

Source: virConnectGetAllDomainStats of libvirt's API; memory is in KiB there, times in nanoseconds.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt

from virtlet.model.stats import DomainStats

# Not CPU_TOTAL: for it the driver looks at all emulators of the node (1.5 s the first time) and
# keeps what it learned of them (8 MB). The kernel tells CPU time as well.
WANTED = libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
FLAGS = (
    libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    # Domains that are busy with another call tell what needs no waiting for them.
    | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
)
_ENDED = ("Z", "X")
"""States of a process that only waits to be reaped."""
_KIB = 1024
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def stats_of(vm_id: str, pid: int | None, values: Mapping[str, Any]) -> DomainStats | None:
    """One domain's record, or None when its emulator has ended.

    Args:
        vm_id: whose.
        pid: the emulator's, where that is known.
        values: libvirt's.
    """
    cpu_time = 0 if pid is None else _cpu_time(pid)
    if cpu_time is None:
        return None
    return DomainStats(
        vm_id=vm_id,
        cpu_time=cpu_time,
        pid=pid,
        vcpus=int(values.get("vcpu.current", 0)),
        # libvirt adds to it what the guest has of a virtio-mem device.
        balloon=int(values.get("balloon.current", 0)) * _KIB,
        guest_unused=_bytes(values.get("balloon.unused")),
        guest_available=_bytes(values.get("balloon.available")),
        guest_usable=_bytes(values.get("balloon.usable")),
        guest_caches=_bytes(values.get("balloon.disk_caches")),
        guest_faults=values.get("balloon.minor_fault"),
        guest_major_faults=values.get("balloon.major_fault"),
        guest_told_at=int(values.get("balloon.last-update", 0)) * 10**9,
    )


def _cpu_time(pid: int) -> int | None:
    """Nanoseconds of CPU a living process has used, in user and system mode; proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in _ENDED:
        return None
    return (int(fields[11]) + int(fields[12])) * _TICK


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * _KIB
