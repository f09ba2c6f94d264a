"""What a VM needs to run around a hypervisor: wrapper, launch server, files, document."""

import itertools
import os
import pwd
import queue
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from attrs import evolve

from tests.fakes.boot_sector import write_boot_disk
from tests.fakes.model import make_config, make_image, make_pod, make_vm
from tests.polling import until
from virtlet.host.files import make_private_directory
from virtlet.launch.server import LaunchDoor, LaunchServer
from virtlet.launch.wrapper import install_wrapper
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState, Hypervisor, Observation
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM, Backend, LaunchPart
from virtlet.model.node import Node
from virtlet.model.vm import Console, Machine, VmExit
from virtlet.plugins.domain_xml.plugin import OPTIONS as XML_OPTIONS
from virtlet.plugins.domain_xml.plugin import Plugin as DomainXml
from virtlet.plugins.libvirt_qemu.plugin import OPTIONS, Plugin
from virtlet.plugins.volumes import virtiofs

QEMU = Path("/usr/bin/qemu-system-x86_64")
PATIENCE = 20.0
"""Seconds to wait for what takes one on an idle machine."""
_names = itertools.count()
_users = itertools.count(2_100_000_000)


def emulator_user() -> tuple[int, int]:
    """User and group that libvirt's packages made for QEMU."""
    entry = pwd.getpwnam("libvirt-qemu")
    return entry.pw_uid, entry.pw_gid


@contextmanager
def open_directory() -> Iterator[Path]:
    """A short directory that the emulator's user can pass through, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="vt-", dir="/var/tmp"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_open_node(root: Path, instance: str = "test") -> Node:
    """A node whose wrapper is installed."""
    uid, gid = emulator_user()
    run_dir = root / "run"
    run_dir.mkdir(mode=0o711, exist_ok=True)
    return Node(
        data_dir=root,
        run_dir=run_dir,
        instance=instance,
        vmwrapper=install_wrapper(root / "bin" / "vmwrapper", QEMU, uid, gid),
        emulator_uid=uid,
        emulator_gid=gid,
    )


class Rig:
    """A hypervisor and what the core puts around it.

    Args:
        node: where.
        uri: which libvirt.
    """

    def __init__(self, node: Node, uri: str) -> None:
        self.node = node
        self._serving: list[subprocess.Popen[bytes]] = []
        self.heard: queue.Queue[Observation] = queue.Queue()
        config = make_config((*OPTIONS, *XML_OPTIONS), libvirtURI=uri, disableKVM="true")
        self._renderer = DomainXml()
        self._renderer.virtlet_configure(config, node)
        self.plugin = Plugin()
        self.plugin.virtlet_configure(config, node)
        hypervisor = self.plugin.virtlet_hypervisor()
        assert hypervisor is not None
        self.hypervisor: Hypervisor = hypervisor
        self.hypervisor.subscribe(self.heard.put)
        self.launches = LaunchServer(
            node.data_dir / "launch.sock", node.emulator_uid, node.emulator_gid
        )

    def open(self) -> None:
        self.hypervisor.open()
        self.launches.start()

    def close(self) -> None:
        self.hypervisor.close()
        self.launches.stop()

    def machine(self, vm_id: str = "", *, shared: bool = False) -> Machine:
        """A machine with the boot sector guest on its disk.

        Args:
            vm_id: its id.
            shared: whether it has no user of its own, as with a hypervisor that knows of none.
        """
        shared = shared or not self.hypervisor.runs_as_vm()
        vm_id = vm_id or uuid.uuid4().hex
        runtime = self.node.run_dir / f"{next(_names)}"
        directory = self.node.data_dir / "volumes" / vm_id
        user = None if shared else next(_users)
        vm = evolve(
            make_vm(directory, make_pod(), image=make_image(directory / "image")),
            id=vm_id,
            uid=user,
            gid=user,
        )
        uid, gid = self.node.user_of(vm)
        for path in (directory, runtime):
            path.parent.mkdir(mode=0o711, exist_ok=True)
            if shared:
                make_private_directory(path, uid=uid, gid=gid)
            else:
                make_private_directory(path, uid=0, gid=gid, mode=0o710)
        root = directory / "root.img"
        write_boot_disk(root)
        console = Console(output=runtime / "console.out", input=runtime / "console.in")
        os.mkfifo(console.input)
        console.output.touch()
        for path in (root, console.input, console.output):
            path.chmod(0o600)
            os.chown(path, uid, gid)
        return Machine(
            vm=vm,
            flavor=Flavor(memory=64 << 20, disk_bus="virtio"),
            root=Disk(path=root, format="raw"),
            volumes=(),
            seed=None,
            console=console,
            accelerator=self.hypervisor.info().accelerator,
            vmwrapper=self.node.vmwrapper,
            environment={
                ENV_SOCKET: str(self.launches.path if shared else runtime / "launch"),
                ENV_VM: vm_id,
                ENV_TOKEN: f"token-of-{vm_id}",
            },
            agent_socket=runtime / "agent.sock",
        )

    def document(self, machine: Machine) -> Element:
        domain = self._renderer.virtlet_render_domain(machine)
        assert domain is not None
        return domain

    def define(self, machine: Machine | None = None) -> Machine:
        machine = machine or self.machine()
        self.hypervisor.define(machine, self.document(machine))
        return machine

    def start(
        self, machine: Machine, part: LaunchPart | None = None, *, alone: bool = True
    ) -> bool:
        """Start it; whether it fetched its launch.

        Args:
            machine: which.
            part: a plugin's.
            alone: whether it may start no process, as the hypervisor has it.
        """
        token = machine.environment[ENV_TOKEN]
        shares = virtiofs.launch_part(machine)
        for backend in shares.backends:
            self._serve(machine, backend)
        own = self.hypervisor.launch(machine)
        parts = [("libvirt_qemu", evolve(own, alone=own.alone and alone)), ("volumes", shares)]
        parts = [*parts, ("test", part)] if part else parts
        self.launches.arm(machine.vm.id, token, parts, self.door(machine))
        try:
            self.hypervisor.start(machine.vm.id)
        finally:
            left = self.launches.disarm(machine.vm.id)
        return not left

    def _serve(self, machine: Machine, backend: Backend) -> None:
        """Start a program that serves a device; it ends with the emulator."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(backend.socket))
            self.give_away(backend.socket, machine)
            listener.listen()
            number = listener.fileno()
            argv = [word.replace("{socket}", str(number)) for word in backend.argv]
            self._serving.append(subprocess.Popen(argv, pass_fds=[number]))

    @contextmanager
    def running(
        self, part: LaunchPart | None = None, machine: Machine | None = None
    ) -> Iterator[Machine]:
        """A running VM that has printed its greeting; removed afterwards."""
        machine = machine or self.machine()
        try:
            self.define(machine)
            self.start(machine, part)
            self.wait_for_console(machine, b"ready")
            yield machine
        finally:
            self.hypervisor.remove(machine.vm.id)
            while self._serving:
                self._serving.pop().wait(PATIENCE)

    def type(self, machine: Machine, text: bytes) -> None:
        """Type on the console."""
        with machine.console.input.open("wb", buffering=0) as keyboard:
            keyboard.write(text)

    def console(self, machine: Machine) -> bytes:
        return machine.console.output.read_bytes()

    def wait_for_console(self, machine: Machine, text: bytes) -> None:
        until(lambda: text in self.console(machine), f"{text!r} on the console")

    def wait_to_hear(self, machine: Machine, state: DomainState) -> Observation:
        """The next observation of the VM's in that state."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            try:
                seen = self.heard.get(timeout=left)
            except queue.Empty:
                break
            if seen.vm_id == machine.vm.id and seen.state is state:
                return seen
        raise AssertionError(f"nothing heard of {machine.vm.id} being {state}")

    def wait_for_end(self, machine: Machine) -> VmExit:
        """How the VM ended, by the next observation of its end."""
        ended = self.wait_to_hear(machine, DomainState.STOPPED).exit
        assert ended is not None
        return ended

    @contextmanager
    def domain(self, machine: Machine) -> Iterator[Any]:
        """libvirt's own view of a VM."""
        hypervisor: Any = self.hypervisor
        with hypervisor._domains.call("look") as connection:
            yield connection.lookupByUUIDString(machine.vm.id)

    def pid(self, machine: Machine) -> int:
        pid = self.hypervisor.stats()[machine.vm.id].pid
        assert pid is not None
        return pid

    def door(self, machine: Machine) -> LaunchDoor | None:
        """Where the launch of a VM with a user of its own is fetched."""
        uid, gid = machine.vm.uid, machine.vm.gid
        if uid is None or gid is None:
            return None
        return LaunchDoor(machine.runtime_directory / "launch", uid, gid)

    def give_away(self, path: Path, machine: Machine) -> None:
        """Give a file to a VM's emulator."""
        os.chown(path, *self.node.user_of(machine.vm))
