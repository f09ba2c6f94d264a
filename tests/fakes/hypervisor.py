"""A hypervisor in memory, whose faults the test chooses."""

import os
import struct
import threading
from collections.abc import Callable, Mapping
from xml.etree.ElementTree import Element

from attrs import asdict, define, evolve, field

from virtlet.errors import FailedPrecondition, NotFound
from virtlet.host import cpus
from virtlet.model.hypervisor import (
    Checkpoint,
    DomainCallback,
    DomainState,
    FilePart,
    Hypervisor,
    HypervisorHealth,
    HypervisorInfo,
    Observation,
    Resize,
)
from virtlet.model.launch import LaunchPart
from virtlet.model.stats import DomainStats
from virtlet.model.vm import Machine, VmExit

EMPTY_DISK = struct.pack(">4sIQIIQIIQQIIQQ", b"QFI\xfb", 3, 0, 0, 16, 1 << 20, *[0] * 8)
"""A header of a qcow2 of one MiB, and nothing more."""


@define
class Faults:
    """What goes wrong: the name of a deed to the error, once or always."""

    always: dict[str, BaseException] = field(factory=dict)
    once: dict[str, BaseException] = field(factory=dict)
    passed: list[str] = field(factory=list)
    """Every deed, in order."""
    stuck: dict[str, threading.Event] = field(factory=dict)
    """What a deed waits for."""

    def strike(self, deed: str) -> None:
        """Raise what the test wants at this deed."""
        self.passed.append(deed)
        if deed in self.stuck:
            assert self.stuck[deed].wait(60)
        error = self.once.pop(deed, None) or self.always.get(deed)
        if error is not None:
            raise error


@define
class FakeHypervisor(Hypervisor):
    """Keeps domains; `start` may do its deed and fail all the same ("started")."""

    faults: Faults
    domains: dict[str, DomainState] = field(factory=dict)
    exits: dict[str, VmExit] = field(factory=dict)
    obeys_the_button: bool = True
    on_start: Callable[[str], None] | None = None
    """Called when a domain has been started, before `start` returns."""
    callback: DomainCallback | None = None

    away: str = ""
    """Why it does not answer; "" when it does."""
    machines: dict[str, Machine] = field(factory=dict)
    """As they were defined last."""
    launched: dict[str, Machine] = field(factory=dict)
    """As they were started last."""
    need: int = 0
    """Bytes that every emulator needs beside its guest."""
    sizes: dict[str, Resize] = field(factory=dict)
    """What running VMs have."""
    documents: dict[str, Element | None] = field(factory=dict)
    """What each VM was defined with."""
    requires_launch: bool = False
    """Whether a start counts only once the launch was fetched, which nobody does here."""
    reads: bool = False
    """Whether it wants a document of every VM."""

    as_vm: bool = False
    """Whether emulators run as their VM's own user."""

    unsettled: set[str] = field(factory=set)
    """VMs whose emulator has something of a checkpoint."""
    pauses: bool = False
    """Whether a VM whose memory is written stands still; else nobody notices."""
    on_hibernate: Callable[[], None] | None = None
    """Called while memory is written."""
    opened: dict[str, bool] = field(factory=dict)
    """Tags of all VMs' shares to whether the guest has opened them."""

    loaded: dict[str, bytes] = field(factory=dict)
    """The memory from which VMs have gone on."""
    basis: dict[str, str] = field(factory=dict)
    """What of the node memory fits."""

    freezes: bool = False
    """Whether it has templates."""

    def unfit_for_template(self, machine: Machine) -> str:
        return "" if self.freezes else super().unfit_for_template(machine)

    def template_basis(self) -> Mapping[str, str]:
        return dict(self.basis)

    def freeze(self, machine: Machine) -> None:
        assert machine.template is not None
        (machine.template.directory / "ram").write_bytes(b"memory")
        self.faults.strike("freeze")

    def runs_as_vm(self) -> bool:
        return self.as_vm

    def opened_shares(self, vm_id: str) -> Mapping[str, bool]:
        self.faults.strike("opened_shares")
        return dict(self.opened)

    def open(self) -> None:
        self.faults.strike("open")

    def close(self) -> None:
        """Nothing to disconnect from."""

    def subscribe(self, callback: DomainCallback) -> None:
        self.callback = callback

    def info(self) -> HypervisorInfo:
        return HypervisorInfo(name="fake", version="1", accelerator="qemu")

    def health(self) -> HypervisorHealth:
        self.faults.strike("health")
        return HypervisorHealth(
            ready=not self.away, reason="Away" if self.away else "", message=self.away
        )

    def overhead(self, machine: Machine) -> int:
        return self.need

    def reads_documents(self) -> bool:
        return self.reads

    def define(self, machine: Machine, domain: Element | None) -> None:
        self.faults.strike("define")
        self.documents[machine.vm.id] = domain
        self.domains[machine.vm.id] = DomainState.DEFINED
        self.machines[machine.vm.id] = machine

    def remove(self, vm_id: str) -> None:
        self.faults.strike("remove")
        self.domains.pop(vm_id, None)

    def launch(self, machine: Machine) -> LaunchPart:
        self.launched[machine.vm.id] = machine
        return LaunchPart(required=self.requires_launch)

    def start(self, vm_id: str) -> None:
        self.faults.strike("start")
        self.unsettled.discard(vm_id)
        if vm_id in self.launched and (saved := self.launched[vm_id].saved) is not None:
            self.loaded[vm_id] = saved.path.read_bytes()[saved.offset :]
        if vm_id not in self.domains:
            raise NotFound(vm_id)
        self.domains[vm_id] = DomainState.RUNNING
        if vm_id in self.machines:
            self.sizes[vm_id] = _size(self.machines[vm_id])
        if self.on_start:
            self.on_start(vm_id)
        self.faults.strike("started")

    def shutdown(self, vm_id: str) -> None:
        self.faults.strike("shutdown")
        if self.obeys_the_button and self.domains.get(vm_id) is DomainState.RUNNING:
            self.end(vm_id, VmExit(exit_code=0, reason="Completed"))

    def stop(self, vm_id: str) -> None:
        self.faults.strike("stop")
        if self.domains.get(vm_id) in (DomainState.RUNNING, DomainState.PAUSED):
            self.domains[vm_id] = DomainState.STOPPED
        self.unsettled.discard(vm_id)

    def observe(self, vm_id: str) -> Observation | None:
        self.faults.strike("observe")
        return self.list().get(vm_id)

    def list(self) -> Mapping[str, Observation]:
        return {
            vm_id: Observation(vm_id=vm_id, state=state, exit=self.exits.get(vm_id))
            for vm_id, state in self.domains.items()
        }

    def stats(self) -> Mapping[str, DomainStats]:
        return {}

    def resize(self, vm_id: str, change: Resize) -> Resize:
        self.faults.strike("resize")
        if self.domains.get(vm_id) is not DomainState.RUNNING:
            raise FailedPrecondition(f"{vm_id} does not run")
        now = self.sizes[vm_id]
        named = [name for name, value in asdict(change).items() if value is not None]
        self.sizes[vm_id] = evolve(now, **{name: getattr(change, name) for name in named})
        self.faults.strike("resized")
        return Resize(**{name: getattr(now, name) for name in named})

    def checkpoint(
        self, machine: Machine, file: int, start: int, broken_off: Callable[[], str]
    ) -> Checkpoint:
        self.faults.strike("checkpoint")
        self.unsettled.add(machine.vm.id)
        os.pwrite(file, b"memory", start)
        self.faults.strike("checkpointed")
        if why := broken_off():
            raise FailedPrecondition(why)
        at = start + 8192
        os.pwrite(file, EMPTY_DISK, at)
        return Checkpoint(
            memory=FilePart(offset=start, size=6),
            disk=FilePart(offset=at, size=len(EMPTY_DISK)),
            stood_still=0.5,
        )

    def hibernate(self, machine: Machine, file: int, broken_off: Callable[[], str]) -> None:
        self.faults.strike("hibernate")
        self.unsettled.add(machine.vm.id)
        if self.pauses:
            self.domains[machine.vm.id] = DomainState.PAUSED
        if self.on_hibernate:
            self.on_hibernate()
        os.pwrite(file, b"memory", 0)
        self.faults.strike("written")
        if why := broken_off():
            raise FailedPrecondition(why)

    def settle(self, vm_id: str) -> None:
        self.faults.strike("settle")
        self.unsettled.discard(vm_id)
        if self.domains.get(vm_id) is DomainState.PAUSED:
            self.domains[vm_id] = DomainState.RUNNING
            if self.callback:
                self.callback(Observation(vm_id=vm_id, state=DomainState.RUNNING))

    @property
    def running(self) -> set[str]:
        """Ids of the VMs whose emulator is alive."""
        return {vm for vm, state in self.domains.items() if state is DomainState.RUNNING}

    def end(self, vm_id: str, how: VmExit) -> None:
        """A guest ends, and the hypervisor tells of it."""
        self.domains[vm_id] = DomainState.STOPPED
        self.exits[vm_id] = how
        if self.callback:
            self.callback(Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=how))


def _size(machine: Machine) -> Resize:
    """What a machine starts with."""
    cpuset = machine.vm.config.resources.cpuset_cpus
    return Resize(
        vcpus=machine.flavor.vcpus,
        memory=machine.flavor.memory,
        cpus=cpus.cpuset(cpuset) if cpuset else cpus.everywhere(),
    )
