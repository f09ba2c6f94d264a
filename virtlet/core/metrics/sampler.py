"""The sampler: one look at all VMs serves everybody who asks for a while."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import evolve, frozen

from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.network import nic_samples
from virtlet.core.metrics.process import ProcessMemory, process_memory
from virtlet.core.metrics.sample import PodSample, VmSample
from virtlet.core.store.records import PodPhase, VmPhase, VmRecord
from virtlet.errors import VirtletError
from virtlet.model.stats import DomainStats

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between samples while somebody asks; the kubelet asks every ten."""
AT_MOST_EVERY = 1.0
"""Seconds between two looks for the sake of new VMs."""
INTEREST = 60.0
"""Seconds after the last question until sampling pauses."""
PATIENCE = 1.0
"""Seconds that a question waits for a look under way before it is answered with what there is."""
_NEVER = float("-inf")


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
        self._asked = _NEVER
        self._wanted = False
        self._stopping = False
        lock = threading.Lock()
        self._turn = threading.Condition(lock)
        """Told when the thread has to do something before its time."""
        self._looked = threading.Condition(lock)
        """Told after every look."""
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        # Samples of the VMs that run already, before the first question: it will come.
        self._wanted = any(vm.phase is VmPhase.RUNNING for vm in self._context.store.vms.values())
        self._thread.start()

    def stop(self) -> None:
        """End; waits for a look under way."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self._thread.join(5.0)

    def samples(self) -> Samples:
        """The newest samples; waits for others when these are old or a VM is new, but not long."""
        asked = time.monotonic()
        deadline = asked + PATIENCE
        with self._looked:
            self._asked = asked
            while not self._enough(asked) and (left := deadline - time.monotonic()) > 0:
                self._wanted = True
                self._turn.notify()
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

    def _run(self) -> None:
        while self._wait_for_turn():
            began = time.monotonic()
            try:
                latest = self._look(began)
            except Exception:
                log.exception("nothing measured")
                latest = evolve(self._latest, taken=began)
            with self._looked:
                self._latest = latest
                # Whoever needs more than this look has found asks again.
                self._wanted = False
                self._looked.notify_all()

    def _wait_for_turn(self) -> bool:
        """Wait until it is time to look; False when it is time to end."""
        with self._turn:
            while not self._stopping:
                now = time.monotonic()
                due = self._latest.taken + INTERVAL
                interest = now - self._asked < INTEREST
                if self._wanted or (interest and now >= due):
                    return True
                self._turn.wait(due - now if interest else None)
            return False

    def _look(self, began: float) -> Samples:
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
            elif record.phase in (VmPhase.RUNNING, VmPhase.EXITED):
                vms[vm_id] = _vm_sample(record, domains.get(vm_id), before)
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


def _vm_sample(record: VmRecord, domain: DomainStats | None, before: VmSample | None) -> VmSample:
    """What a VM consumes now; without a domain its emulator has ended, and consumes nothing."""
    vm = record.vm
    now = time.time_ns()
    told = (domain.cpu_time if domain else None, before.cpu_time if before else None)
    cpu_time = max((known for known in told if known is not None), default=None)
    nano_cores = 0
    if before and cpu_time is not None and before.cpu_time is not None and now > before.at:
        nano_cores = (cpu_time - before.cpu_time) * 1_000_000_000 // (now - before.at)
    memory = (process_memory(domain.pid) if domain and domain.pid else None) or ProcessMemory()
    disk_bytes, disk_inodes = _allocated(vm.directory)
    return VmSample(
        vm_id=vm.id,
        at=now,
        cpu_time=cpu_time,
        nano_cores=nano_cores,
        resident=memory.resident,
        working_set=max(0, memory.resident - memory.file_backed),
        limit=(record.resources or vm.config.resources).memory_limit,
        balloon=(domain.balloon or None) if domain else None,
        guest_available=domain.guest_available if domain else None,
        guest_unused=domain.guest_unused if domain else None,
        page_faults=memory.minor_faults,
        major_page_faults=memory.major_faults,
        processes=1 if domain else 0,
        disk_bytes=disk_bytes,
        disk_inodes=disk_inodes,
    )


def _allocated(directory: Path) -> tuple[int, int]:
    """(bytes, inodes) that the files of a directory take on disk."""
    size = count = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                # 512-byte units, whatever the block size: stat(2).
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                count += 1
    return size, count
