"""The sampler: one look at all VMs serves everybody who asks for a while.

What the kernel tells of emulators is read anew for each question, and takes no hypervisor.
"""

import logging
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType

from attrs import evolve, frozen

from virtlet.core.lifecycle.context import Context
from virtlet.core.metrics.network import nic_samples
from virtlet.core.metrics.sample import PodSample, VmSample
from virtlet.core.metrics.vms import refreshed, vm_sample
from virtlet.core.store.records import PodPhase, VmPhase
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
        self._told: dict[str, int] = {}
        """CPU time of VMs, the most that anybody was told."""
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
        with self._turn:
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
        with self._turn:
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
            elif record.phase in (VmPhase.RUNNING, VmPhase.EXITED):
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
