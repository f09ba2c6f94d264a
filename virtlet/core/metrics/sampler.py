"""The sampler: one look at all VMs serves everybody who asks for a while.

What the kernel tells of emulators is read again for each question, and takes no hypervisor.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import evolve, frozen

from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.sample import (
    PodSample,
    ProcessUsage,
    VmMemory,
    VmSample,
    nic_samples,
    process_usage,
)
from virtlet.core.store.records import PodPhase, VmPhase, VmRecord
from virtlet.errors import VirtletError
from virtlet.model.stats import DomainStats
from virtlet.threads import Worker

log = logging.getLogger(__name__)


_SECOND = 10**9
_RATE_OVER = _SECOND
"""Nanoseconds that a rate is taken over at least: CPU time counts in steps of 10 ms."""
_FRESH = 15 * _SECOND
"""Nanoseconds for which what a guest told is taken for the truth of now: it tells every ten
seconds, and the sampler hears it within five."""
_SILENT = 60 * _SECOND
"""Nanoseconds after which a guest has stopped to tell."""

INTERVAL = 5.0
"""Seconds between samples while somebody asks; the kubelet asks every ten."""
AT_MOST_EVERY = 1.0
"""Seconds between two looks for the sake of new VMs."""
INTEREST = 60.0
"""Seconds after the last question until sampling pauses."""
PATIENCE = 1.0
"""Seconds that a question waits for a look under way before it is answered with what there is."""
_NEVER = float("-inf")


def vm_sample(record: VmRecord, domain: DomainStats | None, before: VmSample | None) -> VmSample:
    """What a VM consumes now; without a domain its emulator has ended, and consumes nothing."""
    vm = record.vm
    now = time.time_ns()
    times = (domain.cpu_time if domain else None, before.cpu_time if before else None)
    cpu_time = max((known for known in times if known is not None), default=None)
    process = process_usage(domain.pid) if domain and domain.pid else None
    disk_bytes, disk_inodes = _allocated(vm.directory, vm.image.path.name)
    ram = domain.balloon if domain else 0
    limit = record.resources.memory_limit
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


def _allocated(directory: Path, image: str) -> tuple[int, int]:
    """(bytes, inodes) that the files of a VM's directory take on disk.

    Its image has a name there too, and is counted with the images.
    """
    size = count = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name == image:
                continue
            if entry.is_dir(follow_symlinks=False):
                continue  # A shared directory is mounted there, and may be slow to answer.
            with contextlib.suppress(OSError):
                # 512-byte units, whatever the block size: stat(2).
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                count += 1
    return size, count


@frozen
class Samples:
    """All samples of one look."""

    vms: Mapping[str, VmSample]
    """A VM that runs and was never measured is not among them."""
    pods: Mapping[str, PodSample]
    taken: float
    """Monotonic seconds when the look began."""


NOTHING = Samples(MappingProxyType({}), MappingProxyType({}), _NEVER)


class Sampler:
    """Keeps the newest samples. One thread looks; whoever asks is answered from memory.

    A hypervisor that hangs holds up that thread alone: questions get the samples of before.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._latest = NOTHING
        self._told: dict[str, int] = {}
        """CPU time of VMs, the most that anybody was told."""
        self._asked = _NEVER
        self._wanted = False
        self._looked = threading.Condition()
        """Notified after every look."""
        self._worker = Worker("sampler", self._turn)

    def start(self) -> None:
        """Begin to serve."""
        # Samples of the VMs that run already, before the first question: it will come.
        self._wanted = any(vm.phase is VmPhase.RUNNING for vm in self._context.store.vms.values())
        self._worker.start()

    def stop(self) -> None:
        """End; waits for a look under way."""
        self._worker.stop(5.0)

    def samples(self) -> Samples:
        """The samples of now.

        What hypervisors and guests tell is that of the newest look; one is waited for when that is
        old or a VM is new, but not long.
        """
        latest = self._newest()
        vms = {vm_id: self._never_back(refreshed(vm)) for vm_id, vm in latest.vms.items()}
        return evolve(latest, vms=MappingProxyType(vms))

    def _never_back(self, sample: VmSample) -> VmSample:
        """A sample with no less CPU time than anybody was told."""
        if sample.cpu_time is None:
            return sample
        with self._looked:
            told = self._told.get(sample.vm_id, 0)
            self._told[sample.vm_id] = max(told, sample.cpu_time)
        return sample if sample.cpu_time >= told else evolve(sample, cpu_time=told)

    def _newest(self) -> Samples:
        asked = time.monotonic()
        deadline = asked + PATIENCE
        with self._looked:
            self._asked = asked
            while not self._enough(asked) and (left := deadline - time.monotonic()) > 0:
                self._wanted = True
                self._worker.wake()
                self._looked.wait(left)
            return self._latest

    def _enough(self, asked: float) -> bool:
        age = asked - self._latest.taken
        if age > 2 * INTERVAL:
            return False
        return age < AT_MOST_EVERY or all(
            vm_id in self._latest.vms
            for vm_id, record in self._context.store.vms.items()
            if record.phase is VmPhase.RUNNING
        )

    def _turn(self) -> float:
        """Look if it is time to; returns the seconds until the next look."""
        began = time.monotonic()
        with self._looked:
            due = self._latest.taken + INTERVAL
            interest = began - self._asked < INTEREST
            if not (self._wanted or (interest and began >= due)):
                return due - began if interest else math.inf
        try:
            latest = self._look(began)
        except Exception:
            log.exception("nothing measured")
            latest = evolve(self._latest, taken=began)
        with self._looked:
            self._latest = latest
            # A caller who needs more than this look has found asks again.
            self._wanted = False
            self._looked.notify_all()
        return 0.0

    def _look(self, began: float) -> Samples:
        with self._looked:
            known = self._context.store.vms
            self._told = {vm_id: told for vm_id, told in self._told.items() if vm_id in known}
        domains: dict[str, DomainStats] = {}
        answered = set()
        for plugin, hypervisor in self._context.hypervisors.all.items():
            try:
                domains |= hypervisor.stats()
                answered.add(plugin)
            except VirtletError as error:
                log.warning("no statistics", extra={"plugin": plugin, "problem": str(error)})
        store = self._context.store
        vms = {}
        for record in store.vms.values():
            vm_id, before = record.vm.id, self._latest.vms.get(record.vm.id)
            if record.phase is VmPhase.RUNNING and record.hypervisor not in answered:
                # It runs on, and nobody says how: what was true then, with the time of then.
                if before is not None:
                    vms[vm_id] = before
            elif record.phase in (VmPhase.RUNNING, VmPhase.HIBERNATED, VmPhase.EXITED):
                vms[vm_id] = vm_sample(record, domains.get(vm_id), before)
        pods = {
            record.pod.id: PodSample(
                record.pod.id,
                time.time_ns(),
                nic_samples(record.network) if record.network else (),
            )
            for record in store.pods.values()
            if record.phase is PodPhase.READY
        }
        return Samples(MappingProxyType(vms), MappingProxyType(pods), began)
