"""The example hypervisor with real emulators, and guests of one boot sector."""

import configparser
import contextlib
import errno
import importlib
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.model import make_config
from tests.plugins.libvirt_qemu.rig import Rig, make_open_node, open_directory
from tests.polling import until
from virtlet.errors import FailedPrecondition, NotFound, Unavailable, Unimplemented
from virtlet.host.links import Links
from virtlet.launch.server import LaunchServer
from virtlet.model.disk import Disk, Share, Unneeded
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.launch import ENV_TOKEN, LaunchPart
from virtlet.model.network import Network, Nic
from virtlet.model.node import Node
from virtlet.model.vm import Machine, VmExit

_UUID = "4c4c4544-0042-3010-8031-c4c04f503432"
EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-hypervisor"


class PlainRig(Rig):
    """What the core puts around the example's hypervisor."""

    def __init__(self, node: Node, plugin: Any) -> None:
        self.node = node
        self.heard: queue.Queue[Observation] = queue.Queue()
        self.plugin = plugin
        self.launches = LaunchServer(
            node.data_dir / "launch.sock", node.emulator_uid, node.emulator_gid
        )
        self.make()

    def make(self) -> None:
        """The hypervisor of a manager that starts."""
        plugin: Any = type(self.plugin)()
        plugin.virtlet_configure(make_config(plugin.virtlet_options()), self.node)
        self.hypervisor = plugin.virtlet_hypervisor()
        self.hypervisor.subscribe(self.heard.put)

    def restart(self) -> None:
        """Go on with the hypervisor of another manager."""
        self.hypervisor.close()
        self.make()
        self.hypervisor.open()

    def define(self, machine: Machine | None = None) -> Machine:
        machine = machine or self.machine()
        self.hypervisor.define(machine, None)
        return machine

    @contextlib.contextmanager
    def running(
        self, part: LaunchPart | None = None, machine: Machine | None = None
    ) -> Iterator[Machine]:
        machine = self.define(machine)
        try:
            self.start(machine, part)
            self.wait_for_console(machine, b"ready")
            yield machine
        finally:
            self.hypervisor.remove(machine.vm.id)

    @property
    def files(self) -> list[Path]:
        """What the plugin keeps."""
        return list(self.node.state_dir("example_hypervisor").iterdir())


@pytest.fixture(scope="module")
def rig() -> Iterator[PlainRig]:
    """What the package's entry point names, as the manager has it."""
    setup = configparser.ConfigParser()
    setup.read(EXAMPLE / "setup.cfg")
    entry = setup["options.entry_points"]["virtlet"].partition("=")[2].strip()
    name, _, kind = entry.partition(":")
    with open_directory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        rig = PlainRig(make_open_node(directory), getattr(importlib.import_module(name), kind)())
        rig.open()
        yield rig
        rig.close()
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]


def _command(pid: int) -> bytes:
    """A process's command line; nothing once it has ended."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _opened(pid: int) -> list[str]:
    """The files that a process has open."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def _end(rig: Rig, machine: Machine) -> VmExit:
    """How the VM ended, as it is told and as it is seen."""
    heard = rig.wait_to_hear(machine, DomainState.STOPPED)
    assert rig.hypervisor.observe(machine.vm.id) == heard
    assert heard.exit is not None
    assert heard.exit.finished_at > 0
    return heard.exit


def test_a_vm_is_known_from_define_to_remove(rig: PlainRig) -> None:
    """Defined, running, stopped and gone; and nothing is left of it."""
    hypervisor, machine = rig.hypervisor, rig.machine()
    vm_id = machine.vm.id
    with pytest.raises(NotFound, match=vm_id):
        hypervisor.start(vm_id)
    rig.define(machine)
    assert hypervisor.observe(vm_id) == Observation(vm_id=vm_id, state=DomainState.DEFINED)
    for call in (hypervisor.stop, hypervisor.shutdown):
        call(vm_id)

    rig.start(machine)
    rig.wait_to_hear(machine, DomainState.RUNNING)
    rig.wait_for_console(machine, b"ready")
    stats = hypervisor.stats()[vm_id]
    assert (stats.vcpus, stats.balloon) == (machine.flavor.vcpus, machine.flavor.memory)
    assert stats.cpu_time > 0
    status = Path(f"/proc/{stats.pid}/status").read_text()
    assert f"Uid:\t{rig.node.emulator_uid}\t" in status
    token = machine.environment[ENV_TOKEN]
    assert token not in Path(f"/proc/{stats.pid}/environ").read_text()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in rig.files)

    hypervisor.stop(vm_id)
    assert not Path(f"/proc/{stats.pid}").exists()
    ended = _end(rig, machine)
    assert (ended.exit_code, ended.message) == (137, "ended by force")
    for _ in range(2):
        hypervisor.remove(vm_id)
    assert vm_id not in hypervisor.list()
    assert rig.files == []


@pytest.mark.parametrize(
    ("typed", "code", "reason"), [(b"o", 0, "Completed"), (b"p", 1, "Error"), (b"", 0, "Completed")]
)
def test_a_guest_ends_by_itself(rig: PlainRig, typed: bytes, code: int, reason: str) -> None:
    """It powers off, panics, or hears the power button."""
    with rig.running() as machine:
        if typed:
            rig.type(machine, typed)
        else:
            rig.hypervisor.shutdown(machine.vm.id)
        ended = _end(rig, machine)
        assert (ended.exit_code, ended.reason) == (code, reason)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143)])
def test_an_emulator_is_ended_by_somebody_else(
    rig: PlainRig, number: signal.Signals, code: int
) -> None:
    """Which of the two signals it was is told."""
    with rig.running() as machine:
        os.kill(rig.pid(machine), number)
        assert _end(rig, machine).exit_code == code


def test_a_guest_resets_and_goes_on(rig: PlainRig) -> None:
    """In the same emulator."""
    with rig.running() as machine:
        pid = rig.pid(machine)
        rig.type(machine, b"r")
        until(lambda: rig.console(machine).count(b"ready") == 2, "the second greeting")
        assert rig.pid(machine) == pid


def test_a_vm_outlives_the_manager_and_its_end_is_told_by_the_next(rig: PlainRig) -> None:
    """One goes on; of the others it is known whether the guest or the emulator was the cause."""
    with contextlib.ExitStack() as stack:
        lives, completed, killed = (stack.enter_context(rig.running()) for _ in range(3))
        pids = {machine.vm.id: rig.pid(machine) for machine in (lives, completed, killed)}
        rig.hypervisor.close()
        rig.type(completed, b"o")
        os.kill(pids[killed.vm.id], signal.SIGKILL)
        until(lambda: not _command(pids[killed.vm.id]), "the emulator's end")
        rig.restart()
        assert _end(rig, completed).reason == "Completed"
        seen = rig.hypervisor.observe(killed.vm.id)
        assert seen is not None
        assert seen.exit is not None
        assert (seen.state, seen.exit.exit_code) == (DomainState.STOPPED, 137)
        assert rig.pid(lives) == pids[lives.vm.id]
        rig.hypervisor.shutdown(lives.vm.id)
        assert _end(rig, lives).reason == "Completed"
        os.waitpid(pids[killed.vm.id], 0)  # as init does


@pytest.mark.parametrize(("board", "bus"), [("q35", "scsi"), ("pc", "virtio")])
def test_disks_of_every_kind_are_attached(rig: PlainRig, board: str, bus: str) -> None:
    """An overlay to boot from, a volume of each sort and a seed."""
    machine = rig.machine()
    directory, image = machine.vm.directory, machine.root.path
    overlay = directory / "root,1.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, overlay]
    subprocess.run(list(map(str, create)), check=True)
    rig.give_away(overlay, machine)
    for name in ("volume", "tools", "seed"):
        (directory / name).write_bytes(bytes(1 << 20))
        rig.give_away(directory / name, machine)
    machine = evolve(
        machine,
        flavor=evolve(machine.flavor, machine=board, disk_bus=bus, vcpus=2, system_uuid=_UUID),
        root=Disk(path=overlay, backing=image, backing_format="raw", serial="root"),
        volumes=(
            Disk(path=directory / "volume", format="raw", readonly=True, serial="volume-0"),
            Disk(path=directory / "tools", format="raw", kind="cdrom"),
            Unneeded(guest_path="/etc/hosts", reason="the guest has its own"),
        ),
        seed=Disk(path=directory / "seed", format="raw", readonly=True, kind="cdrom"),
    )
    with rig.running(machine=machine):
        assert rig.hypervisor.stats()[machine.vm.id].vcpus == 2
        disks = {overlay, image, *(directory / name for name in ("volume", "tools", "seed"))}
        assert disks <= {Path(path) for path in _opened(rig.pid(machine))}


@pytest.mark.usefixtures("own_network")
def test_a_tap_of_several_queues_becomes_one_nic(rig: PlainRig) -> None:
    """Its queues are the emulator's, and nobody else's."""
    with Links() as links:
        links.add_tap("tap0", multi_queue=True)
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, device="tap0", queues=2)
    machine = rig.machine()
    machine = evolve(machine, vm=evolve(machine.vm, network=Network(netns=None, nics=(nic,))))
    with rig.running(machine=machine):
        assert _opened(rig.pid(machine)).count("/dev/net/tun") == 2
        assert "/dev/net/tun" not in _opened(os.getpid())


def test_an_emulator_that_does_not_start_says_why_and_can_be_started_again(rig: PlainRig) -> None:
    """The VM stays defined."""
    machine = rig.define()
    elsewhere = machine.root.path.rename(machine.root.path.with_name("elsewhere"))
    with pytest.raises(FailedPrecondition, match=r"did not start: .*root\.img"):
        rig.start(machine)
    seen = rig.hypervisor.observe(machine.vm.id)
    assert seen is not None
    assert seen.state is DomainState.DEFINED
    elsewhere.rename(machine.root.path)
    rig.start(machine)
    rig.wait_for_console(machine, b"ready")
    rig.hypervisor.remove(machine.vm.id)


def test_an_emulator_that_cannot_be_followed_is_ended(
    rig: PlainRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where descriptors have run out; else it would run on, and no manager would know."""
    started: list[int] = []

    def no_more(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    machine = rig.define()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", no_more)
        with pytest.raises(FailedPrecondition, match="Too many open files"):
            rig.start(machine)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    rig.hypervisor.remove(machine.vm.id)


@pytest.mark.usefixtures("rig")
def test_an_emulator_that_sends_events_without_end_holds_up_nobody(tmp_path: Path) -> None:
    """Else the figures of all VMs would wait for one whose emulator a guest has taken over."""
    qmp = importlib.import_module("virtlet_example_hypervisor.qmp")
    path = tmp_path / "qmp.sock"
    done = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as peer:
            peer.sendall(b'{"QMP": {}}\n{"return": {}}\n')
            while not done.is_set():
                peer.sendall(b'{"event": "RTC_CHANGE"}\n' * 100)

    emulator = os.pidfd_open(os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        asked: queue.Queue[BaseException] = queue.Queue()

        def ask() -> None:
            with qmp.Qmp(path, emulator) as connection:
                try:
                    connection.execute("query-balloon")
                except Unavailable as error:
                    asked.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            assert "does not answer" in str(asked.get(timeout=60))
        finally:
            done.set()
            server.join()
    os.close(emulator)


def test_a_launch_that_nobody_armed_is_refused_at_once_with_vmwrappers_words(rig: PlainRig) -> None:
    """There is no way around the launch."""
    machine = rig.define()
    with socket.socket(socket.AF_UNIX) as listener:  # as of a launch that is held by the manager
        listener.bind(str(machine.runtime_directory / "events.sock"))
        listener.listen()
        with pytest.raises(FailedPrecondition, match="vmwrapper: the manager refused the launch"):
            rig.hypervisor.start(machine.vm.id)
    rig.hypervisor.remove(machine.vm.id)


def test_a_node_without_qemu_is_told_when_it_opens(rig: PlainRig) -> None:
    """The handler is refused then, and not each of its VMs."""
    plugin: Any = type(rig.plugin)()
    node = evolve(rig.node, emulator_problem="install QEMU")
    plugin.virtlet_configure(make_config(plugin.virtlet_options()), node)
    with pytest.raises(FailedPrecondition, match="install QEMU"):
        plugin.virtlet_hypervisor().open()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("shared directory", {"volumes": True}),
        ("UEFI", {"firmware": "uefi"}),
        ("TPM", {"tpm": True}),
        ("vsock", {"vsock": True}),
        ("locked memory", {"lock_memory": True}),
        ("USB", {"usb": True}),
        ("CPU", {"extras": {"domain_cpu": "<cpu/>"}}),
    ],
)
def test_what_it_cannot_do_is_refused_with_what_helps(
    rig: PlainRig, what: str, changes: dict[str, Any]
) -> None:
    """When the VM is defined."""
    machine = rig.machine()
    if changes.pop("volumes", None):
        share = Share(host_path=Path("/srv"), guest_path="/mnt", tag="volume-0")
        machine = evolve(machine, volumes=(share,))
    machine = evolve(machine, flavor=evolve(machine.flavor, **changes))
    with pytest.raises(Unimplemented, match=rf"{what}.*built-in hypervisor"):
        rig.define(machine)
    assert rig.hypervisor.observe(machine.vm.id) is None


def test_a_nic_that_it_cannot_connect_is_refused_and_no_descriptor_stays(rig: PlainRig) -> None:
    """Those of the sockets are open by then."""
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, kind="hostdev")
    machine = rig.machine()
    machine = evolve(machine, vm=evolve(machine.vm, network=Network(netns=None, nics=(nic,))))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FailedPrecondition, match="eth0 is of kind 'hostdev'"):
        rig.hypervisor.launch(machine)
    assert os.listdir("/proc/self/fd") == before
