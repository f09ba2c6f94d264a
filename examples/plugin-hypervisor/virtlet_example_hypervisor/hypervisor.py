"""Runs VMs: a QEMU for each, which outlives the manager, and a thread that watches it."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from attrs import evolve

from virtlet.api import (
    DomainCallback,
    DomainState,
    DomainStats,
    FailedPrecondition,
    Hypervisor,
    HypervisorInfo,
    LaunchPart,
    Machine,
    Node,
    NotFound,
    Observation,
    Unavailable,
    VirtletError,
    run,
)
from virtlet_example_hypervisor.emulator import Emulator, running, spawn
from virtlet_example_hypervisor.launch import COMMANDS, EVENTS, launch_part
from virtlet_example_hypervisor.machine import command_line
from virtlet_example_hypervisor.qmp import Qmp
from virtlet_example_hypervisor.records import Record, Records

log = logging.getLogger(__name__)

START_PATIENCE = 30.0
"""Seconds until an emulator that was started has to answer."""
GRACE = 10.0
"""Seconds an emulator gets to write out what it holds, before SIGKILL."""

COMPLETED = (0, "Completed", "the guest powered off")
PANICKED = (1, "Error", "the guest's kernel panicked")
FORCED = (137, "Error", "ended by force")
DIED = (137, "Error", "the emulator died under the running guest")
SIGNALLED = (143, "Error", "the emulator was told to end by a signal from the node")
ENDS = {"shutdown": COMPLETED, "guest-panicked": PANICKED}
"""QEMU's words for states in which the guest is done."""

_MIB = 1 << 20
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


class QemuHypervisor(Hypervisor):
    """QEMU without libvirt.

    Args:
        node: the manager's places.
        kvm: whether to use it.
    """

    def __init__(self, node: Node, *, kvm: bool) -> None:
        self._node = node
        self._accelerator = "kvm" if kvm else "qemu"
        self._version = ""
        self._records = Records(node.state_dir("example_hypervisor"))
        self._emulators: dict[str, Emulator] = {}
        self._starting = threading.Lock()
        self._tell: DomainCallback = lambda _: None
        self._closing = False

    def open(self) -> None:
        """Find the emulators that an earlier manager started."""
        if self._node.emulator_problem:
            raise FailedPrecondition(self._node.emulator_problem)
        # Without the variables of a launch, vmwrapper starts QEMU for such a question alone.
        self._version = run([str(self._node.vmwrapper), "--version"]).decode().split()[3]
        self._records.load()
        for emulator in running(self._records.all().keys(), self._node):
            self._watch(emulator)
        for vm_id in self._records.all().keys() - self._emulators.keys():
            self._records.end(vm_id, *self._why_gone(vm_id))

    def close(self) -> None:
        """Stop watching; VMs go on running."""
        self._closing = True
        for emulator in list(self._emulators.values()):
            if emulator.events is not None:
                emulator.events.hang_up()

    def info(self) -> HypervisorInfo:
        """QEMU, as vmwrapper starts it."""
        return HypervisorInfo(name="QEMU", version=self._version, accelerator=self._accelerator)

    def overhead(self, machine: Machine) -> int:
        """Roughly what QEMU takes beside the guest's RAM."""
        flavor = machine.flavor
        need = 80 * _MIB + 4 * _MIB * flavor.vcpus + flavor.memory // 64
        return need if machine.accelerator == "kvm" else need + flavor.translation_buffer * 9 // 8

    def define(self, machine: Machine, domain: Element | None) -> None:
        """Write down how to start the VM; there is no document to read."""
        record = Record(
            argv=[str(machine.vmwrapper), *command_line(machine)],
            environment=dict(machine.environment),
            sockets=str(machine.runtime_directory),
            started=machine.vm.id in self._emulators,
        )
        self._records.put(machine.vm.id, record)

    def remove(self, vm_id: str) -> None:
        """End the emulator, and forget the VM."""
        self.stop(vm_id)
        self._records.remove(vm_id)

    def launch(self, machine: Machine) -> LaunchPart:
        """The sockets and the NICs."""
        return launch_part(machine)

    def start(self, vm_id: str) -> None:
        """Start the emulator, and wait until its guest runs."""
        record = self._records.all().get(vm_id)
        if record is None:
            raise NotFound(f"cannot start VM {vm_id}: it is not defined")
        with self._starting:
            if vm_id in self._emulators:
                return
            # Before there is a process: a manager that dies now looks for one at its next start.
            self._records.put(vm_id, evolve(record, started=True, exit=None))
            try:
                with self._records.new_log(vm_id) as output:
                    emulator = spawn(vm_id, record.argv, record.environment, output, self._node)
            except OSError as error:
                self._records.put(vm_id, record)
                raise FailedPrecondition(f"cannot start VM {vm_id}: {error}") from None
            self._watch(emulator)
        emulator.seen.wait(START_PATIENCE)
        if not emulator.status:
            self.stop(vm_id)
            self._records.put(vm_id, record)
            words = self._records.last_words(vm_id)
            raise FailedPrecondition(f"the emulator of VM {vm_id} did not start: {words}")

    def shutdown(self, vm_id: str) -> None:
        """Press the power button."""
        emulator = self._emulators.get(vm_id)
        if emulator is not None:
            with self._connect(emulator, COMMANDS) as qmp:
                qmp.execute("system_powerdown")

    def stop(self, vm_id: str) -> None:
        """End the emulator: SIGTERM, and SIGKILL if that does not help."""
        emulator = self._emulators.get(vm_id)
        if emulator is None:
            return
        self._records.end(vm_id, *FORCED)
        for number in (signal.SIGTERM, signal.SIGKILL):
            emulator.signal(number)
            if emulator.over.wait(GRACE):
                return
        raise Unavailable(f"the emulator of VM {vm_id} (process {emulator.pid}) does not end")

    def list(self) -> Mapping[str, Observation]:
        """All VMs on record."""
        return {vm_id: self._seen(vm_id, record) for vm_id, record in self._records.all().items()}

    def subscribe(self, callback: DomainCallback) -> None:
        """Tell `callback` of every change."""
        self._tell = callback

    def stats(self) -> Mapping[str, DomainStats]:
        """Consumption of all running VMs."""
        found: dict[str, DomainStats] = {}
        for vm_id, emulator in self._emulators.copy().items():
            # One that ends just now, or lies, does not hide the others.
            with contextlib.suppress(Exception), self._connect(emulator, COMMANDS) as qmp:
                # User and system time; see proc_pid_stat(5).
                stat = Path(f"/proc/{emulator.pid}/stat").read_text().rpartition(")")[2].split()
                found[vm_id] = DomainStats(
                    vm_id=vm_id,
                    cpu_time=(int(stat[11]) + int(stat[12])) * _TICK,
                    pid=emulator.pid,
                    vcpus=len(qmp.execute("query-cpus-fast")),
                    balloon=qmp.execute("query-balloon")["actual"],
                )
        return found

    def _watch(self, emulator: Emulator) -> None:
        self._emulators[emulator.vm_id] = emulator
        name = f"qemu-{emulator.vm_id[:8]}"
        threading.Thread(target=self._follow, args=(emulator,), name=name, daemon=True).start()

    def _follow(self, emulator: Emulator) -> None:
        """Note what happens to an emulator, until it has ended."""
        vm_id = emulator.vm_id
        try:
            with self._connect(emulator, EVENTS, START_PATIENCE) as emulator.events:
                while not self._closing:
                    self._note(emulator, emulator.events.execute("query-status")["status"])
                    emulator.events.wait_for_event()
        except VirtletError:
            pass  # it ends, or the manager does
        except Exception:
            log.exception("emulator not watched any more", extra={"vm": vm_id})
        if self._closing:
            return
        emulator.wait()
        self._records.end(vm_id, *self._why_gone(vm_id))
        del self._emulators[vm_id]
        emulator.close()
        self._tell_of(vm_id)

    def _note(self, emulator: Emulator, status: str) -> None:
        if status in ENDS:
            self._records.end(emulator.vm_id, *ENDS[status])
            emulator.signal(signal.SIGTERM)
            status = "running"  # until it has written out what it holds
        changed, emulator.status = status != emulator.status, status
        emulator.seen.set()
        if changed:
            self._tell_of(emulator.vm_id)

    def _why_gone(self, vm_id: str) -> tuple[int, str, str]:
        """How an emulator ended that nobody ended and whose guest was not done."""
        return SIGNALLED if "terminating on signal" in self._records.last_words(vm_id) else DIED

    def _connect(self, emulator: Emulator, socket: str, patience: float = GRACE) -> Qmp:
        directory = Path(self._records.all()[emulator.vm_id].sockets)
        return Qmp(directory / socket, emulator.pidfd, patience)

    def _seen(self, vm_id: str, record: Record) -> Observation:
        emulator, state = self._emulators.get(vm_id), DomainState.DEFINED
        if emulator is not None:
            live = emulator.status in ("", "running")
            state = DomainState.RUNNING if live else DomainState.PAUSED
        elif record.started:
            state = DomainState.STOPPED
        ended = record.exit if state is DomainState.STOPPED else None
        return Observation(vm_id=vm_id, state=state, exit=ended)

    def _tell_of(self, vm_id: str) -> None:
        observation = self.observe(vm_id)
        if observation is not None:
            self._tell(observation)
