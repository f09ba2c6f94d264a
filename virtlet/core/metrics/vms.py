"""What one VM uses: looked at with its hypervisor, or by the kernel's counters alone."""

import contextlib
import os
import time
from pathlib import Path

from attrs import evolve

from virtlet.core.metrics.process import ProcessUsage, process_usage
from virtlet.core.metrics.sample import VmMemory, VmSample
from virtlet.core.store.records import VmRecord
from virtlet.model.stats import DomainStats

_SECOND = 10**9
_RATE_OVER = _SECOND
"""Nanoseconds that a rate is taken over at least: CPU time counts in steps of 10 ms."""
_FRESH = 15 * _SECOND
"""Nanoseconds for which what a guest told is taken for the truth of now: it tells every ten
seconds, and the sampler hears it within five."""
_SILENT = 60 * _SECOND
"""Nanoseconds after which a guest has stopped to tell."""


def vm_sample(record: VmRecord, domain: DomainStats | None, before: VmSample | None) -> VmSample:
    """What a VM consumes now; without a domain its emulator has ended, and consumes nothing."""
    vm = record.vm
    now = time.time_ns()
    times = (domain.cpu_time if domain else None, before.cpu_time if before else None)
    cpu_time = max((known for known in times if known is not None), default=None)
    process = process_usage(domain.pid) if domain and domain.pid else None
    disk_bytes, disk_inodes = _allocated(vm.directory)
    ram = domain.balloon if domain else 0
    limit = (record.resources or vm.config.resources).memory_limit
    memory = _told(domain, limit, now) if domain else VmMemory()
    return VmSample(
        vm_id=vm.id,
        at=now,
        cpu_time=cpu_time,
        nano_cores=_nano_cores(before, now, cpu_time),
        memory=memory or _taken(process, limit or ram),
        memory_at=now,
        ram=ram,
        limit=limit,
        balloon=(domain.balloon or None) if domain else None,
        guest_available=domain.guest_available if domain else None,
        guest_unused=domain.guest_unused if domain else None,
        pid=domain.pid if domain else None,
        process=process,
        processes=1 if domain else 0,
        looked_at=now,
        disk_bytes=disk_bytes,
        disk_inodes=disk_inodes,
    )


def _nano_cores(before: VmSample | None, now: int, cpu_time: int | None) -> int:
    """The rate since the sample before, or its rate where it is too fresh to take another."""
    rate = _rate(before, now, cpu_time)
    return (before.nano_cores if before else 0) if rate is None else rate


def refreshed(sample: VmSample) -> VmSample:
    """A sample with what the kernel tells now; as it is when the emulator has just ended."""
    if sample.pid is None or sample.process is None or sample.cpu_time is None:
        return sample
    process = process_usage(sample.pid)
    if process is None or process.started != sample.process.started:
        return sample
    now = time.time_ns()
    used = process.user + process.system - sample.process.user - sample.process.system
    cpu_time = sample.cpu_time + max(0, used)
    rate = _rate(sample, now, cpu_time)
    by_guest = sample.memory.by_guest
    return evolve(
        sample,
        at=now,
        cpu_time=cpu_time,
        nano_cores=sample.nano_cores if rate is None else rate,
        memory=sample.memory if by_guest else _taken(process, sample.limit or sample.ram),
        memory_at=now if not by_guest or now - sample.at < _FRESH else sample.memory_at,
        process=process,
    )


def _rate(before: VmSample | None, now: int, cpu_time: int | None) -> int | None:
    """Nanoseconds of CPU per second since a sample, if that is long enough ago."""
    if before is None or before.cpu_time is None or cpu_time is None:
        return None
    elapsed = now - before.at
    return (cpu_time - before.cpu_time) * _SECOND // elapsed if elapsed >= _RATE_OVER else None


def _told(domain: DomainStats, limit: int, now: int) -> VmMemory | None:
    """What the guest uses, by its own account; None if it gives none, or none any more."""
    ram = domain.balloon
    if domain.guest_unused is None or now - domain.guest_told_at > _SILENT:
        return None
    unused = domain.guest_unused
    # Kernels before 3.14 know free memory alone.
    usable = unused if domain.guest_usable is None else domain.guest_usable
    # What the guest's kernel never gave to anybody is in use, too, and what the limit leaves to the
    # emulator. The guest's figures are of one moment, maybe before the last change of its RAM.
    total, most = domain.guest_available or ram, max(ram, limit)
    kept = max(0, most - total)
    usage = min(most, kept + max(0, total - unused))
    caches = domain.guest_caches
    return VmMemory(
        usage=usage,
        working_set=min(usage, kept + max(0, total - usable)),
        rss=max(0, usage - (caches or 0)),
        cache=None if caches is None else min(caches, usage),
        page_faults=domain.guest_faults,
        major_page_faults=domain.guest_major_faults,
        by_guest=True,
    )


def _taken(process: ProcessUsage | None, limit: int) -> VmMemory:
    """What the emulator has of the node's memory, as far as the limit goes."""
    if process is None:
        return VmMemory()
    most = limit or process.resident
    return VmMemory(
        usage=min(process.resident, most),
        working_set=min(max(0, process.resident - process.file_backed), most),
        rss=min(process.resident, most),
    )


def _allocated(directory: Path) -> tuple[int, int]:
    """(bytes, inodes) that the files of a directory take on disk."""
    size = count = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue  # A shared directory is mounted there, and may be slow to answer.
            with contextlib.suppress(OSError):
                # 512-byte units, whatever the block size: stat(2).
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                count += 1
    return size, count
