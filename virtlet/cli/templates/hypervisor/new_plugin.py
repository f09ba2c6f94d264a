"""A hypervisor that keeps its VMs' states and starts nothing yet."""

import threading
import time
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from virtlet.api import (
    DomainCallback,
    DomainState,
    FailedPrecondition,
    Hypervisor,
    HypervisorInfo,
    Machine,
    NotFound,
    Observation,
    VmExit,
    hookimpl,
)


class NewPlugin(Hypervisor):
    """Runs VMs; methods are called on worker threads, several at a time.

    `_run` and `_end` are to start and end a VM's process. A restarted manager asks `list` for what
    runs: keep what it needs in a file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machines: dict[str, Machine] = {}
        self._seen: dict[str, Observation] = {}
        self._tell: DomainCallback = lambda seen: None

    def info(self) -> HypervisorInfo:
        """Say what this hypervisor is."""
        return HypervisorInfo(name="new-plugin", version="0.1", accelerator="qemu")

    def define(self, machine: Machine, domain: Element | None) -> None:
        """Make the VM known."""
        with self._lock:
            self._machines[machine.vm.id] = machine
            self._seen[machine.vm.id] = Observation(vm_id=machine.vm.id, state=DomainState.DEFINED)

    def remove(self, vm_id: str) -> None:
        """Forget the VM."""
        self.stop(vm_id)
        with self._lock:
            self._machines.pop(vm_id, None)
            self._seen.pop(vm_id, None)

    def start(self, vm_id: str) -> None:
        """Start the VM."""
        with self._lock:
            machine = self._machines.get(vm_id)
        if machine is None:
            raise NotFound(f"there is no VM {vm_id}")
        self._run(machine)
        self._change(Observation(vm_id=vm_id, state=DomainState.RUNNING))

    def shutdown(self, vm_id: str) -> None:
        """Ask the guest to power off, and return at once."""

    def stop(self, vm_id: str) -> None:
        """End the VM by force."""
        with self._lock:
            seen = self._seen.get(vm_id)
        if seen is not None and seen.state is DomainState.RUNNING:
            self._end(vm_id)
            how = VmExit(exit_code=137, reason="Error", finished_at=time.time_ns())
            self._change(Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=how))

    def list(self) -> Mapping[str, Observation]:
        """All VMs."""
        with self._lock:
            return dict(self._seen)

    def subscribe(self, callback: DomainCallback) -> None:
        """Remember whom to tell of changes."""
        self._tell = callback

    def _run(self, machine: Machine) -> None:
        raise FailedPrecondition("new-plugin starts no emulator yet: write NewPlugin._run")

    def _end(self, vm_id: str) -> None:
        """Kill the VM's process, and wait for its end."""

    def _change(self, seen: Observation) -> None:
        with self._lock:
            self._seen[seen.vm_id] = seen
        self._tell(seen)


class Plugin:
    """Provides the hypervisor."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._hypervisor = NewPlugin()

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor | None:
        """Return the same object for all handlers."""
        return self._hypervisor
