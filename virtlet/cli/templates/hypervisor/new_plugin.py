"""VMs as plain QEMU processes: disks and a console, and no NIC yet; they end with the manager."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from virtlet.api import (
    Disk,
    DomainCallback,
    DomainState,
    FailedPrecondition,
    Hypervisor,
    HypervisorInfo,
    Machine,
    Node,
    NotFound,
    Observation,
    Settings,
    VmExit,
    hookimpl,
    make_private_directory,
    remove_file,
)

START_SECONDS = 30.0


class NewPlugin(Hypervisor):
    """Runs VMs; methods are called on worker threads, several at a time.

    All it knows is in memory, so it ends its VMs when the manager ends. To let them go on, keep
    what the next manager needs in a file, and find the processes again in `open`.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._name = f"new-plugin-{node.instance}"
        self._logs = node.state_dir("new_plugin")
        self._lock = threading.Lock()
        self._machines: dict[str, Machine] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: dict[str, Observation] = {}
        self._tell: DomainCallback = lambda seen: None

    def open(self) -> None:
        """End what a manager that was killed has left."""
        if self._node.emulator_problem:
            raise FailedPrecondition(self._node.emulator_problem)
        make_private_directory(self._logs)
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if self._name.encode() in file.read_bytes().split(b"\0"):
                    os.kill(int(file.parent.name), signal.SIGKILL)

    def close(self) -> None:
        """End the VMs, which the next manager would not know of."""
        for vm_id in list(self._processes):
            self.stop(vm_id)

    def info(self) -> HypervisorInfo:
        """Say what this hypervisor is."""
        return HypervisorInfo(name="new-plugin", version="0.1", accelerator="qemu")

    def overhead(self, machine: Machine) -> int:
        """Roughly what QEMU takes beside the guest's RAM."""
        return (80 << 20) + machine.flavor.translation_buffer * 9 // 8

    def define(self, machine: Machine, domain: Element | None) -> None:
        """Make the VM known; there is no domain document, because `reads_documents` says no."""
        vm_id = machine.vm.id
        with self._lock:
            self._machines[vm_id] = machine
            self._seen[vm_id] = Observation(vm_id=vm_id, state=DomainState.DEFINED)

    def remove(self, vm_id: str) -> None:
        """Forget the VM."""
        self.stop(vm_id)
        with self._lock:
            self._machines.pop(vm_id, None)
            self._seen.pop(vm_id, None)
        remove_file(self._logs / f"{vm_id}.log")

    def start(self, vm_id: str) -> None:
        """Start the VM, and wait until QEMU has written its pid file."""
        machine = self._machines.get(vm_id)
        if machine is None:
            raise NotFound(f"cannot start VM {vm_id}: it is not defined")
        pid_file, log = machine.vm.directory / "qemu.pid", self._logs / f"{vm_id}.log"
        remove_file(pid_file)
        remove_file(log)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(machine, self._name, pid_file),
                env=dict(machine.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._node.emulator_uid,
                group=self._node.emulator_gid,
                extra_groups=[self._node.emulator_gid],
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not os.path.lexists(pid_file):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                words = " ".join(log.read_text(errors="replace").split())[-300:]
                raise FailedPrecondition(f"the emulator of VM {vm_id} did not start: {words}")
            time.sleep(0.05)
        self._processes[vm_id] = process
        self._change(Observation(vm_id=vm_id, state=DomainState.RUNNING))
        threading.Thread(target=self._watch, args=(vm_id, process), daemon=True).start()

    def shutdown(self, vm_id: str) -> None:
        """Press the power button: not yet, so the core ends the VM by force after its grace."""

    def stop(self, vm_id: str) -> None:
        """End the VM by force, and wait for its end."""
        process = self._processes.get(vm_id)
        if process is not None:
            process.kill()
            process.wait()

    def list(self) -> Mapping[str, Observation]:
        """All VMs."""
        with self._lock:
            return dict(self._seen)

    def subscribe(self, callback: DomainCallback) -> None:
        """Remember whom to tell of changes."""
        self._tell = callback

    def _watch(self, vm_id: str, process: subprocess.Popen[bytes]) -> None:
        """Tell how a VM ended, once it has."""
        status = process.wait()
        self._processes.pop(vm_id, None)
        reason = "Completed" if status == 0 else "Error"
        how = VmExit(exit_code=abs(status), reason=reason, finished_at=time.time_ns())
        self._change(Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=how))

    def _change(self, seen: Observation) -> None:
        with self._lock:
            if seen.vm_id in self._machines:
                self._seen[seen.vm_id] = seen
        self._tell(seen)


class Plugin:
    """Provides the hypervisor."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Make it; the core opens it where a handler needs it."""
        self._hypervisor = NewPlugin(node)

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor | None:
        """Return the same object for all handlers."""
        return self._hypervisor


def command(machine: Machine, name: str, pid_file: Path) -> list[str]:
    """The command that starts a VM; the core adds what plugins contribute by virtlet_launch."""
    flavor = machine.flavor
    console = escaped(machine.console.output.with_suffix(""))  # QEMU adds .in and .out
    return [
        str(machine.vmwrapper),
        *("-name", name),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"{flavor.machine},graphics=off"),
        *("-accel", f"tcg,tb-size={flavor.translation_buffer >> 20}"),
        *("-smp", str(flavor.vcpus), "-m", f"{flavor.memory}B"),
        *("-chardev", f"pipe,id=console,path={console}", "-serial", "chardev:console"),
        *("-pidfile", str(pid_file)),
        *drives(machine),
    ]


def drives(machine: Machine) -> Iterator[str]:
    """Root disk, volumes and seed, in this order."""
    disks = [machine.root, *(volume for volume in machine.volumes if isinstance(volume, Disk))]
    for disk in disks if machine.seed is None else [*disks, machine.seed]:
        access = "on" if disk.readonly or disk.kind == "cdrom" else "off"
        drive = f"file={escaped(disk.path)},format={disk.format},if=virtio,readonly={access}"
        yield from ("-drive", drive)


def escaped(path: Path) -> str:
    """A path in an option of QEMU's, where a comma is written twice."""
    return str(path).replace(",", ",,")
