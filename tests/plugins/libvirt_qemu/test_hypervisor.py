"""VMs on libvirt's embedded QEMU driver, started through vmwrapper."""

import os
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
import pytest
from attrs import evolve

from tests.plugins.libvirt_qemu.rig import Rig
from tests.polling import until
from virtlet.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.launch import ENV_TOKEN, LaunchFd, LaunchPart
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.domain_events import DomainEvent
from virtlet.plugins.libvirt_qemu.domain_logs import INTERVAL, KEPT, LONGEST, cut
from virtlet.plugins.libvirt_qemu.monitor_watch import thread_of

_FOREIGN = """
<domain type="qemu">
  <name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>
  {metadata}
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <devices><emulator>{emulator}</emulator></devices>
</domain>
"""


def test_a_domain_is_known_from_define_to_remove(rig: Rig) -> None:
    """Defined, running, stopped and gone, each shown as what it is."""
    hypervisor, machine = rig.hypervisor, rig.machine()
    vm_id = machine.vm.id
    assert hypervisor.observe(vm_id) is None
    rig.define(machine)
    assert hypervisor.observe(vm_id) == Observation(vm_id=vm_id, state=DomainState.DEFINED)
    assert vm_id not in hypervisor.stats()

    rig.start(machine)
    assert hypervisor.list()[vm_id] == Observation(vm_id=vm_id, state=DomainState.RUNNING)
    assert rig.wait_to_hear(machine, DomainState.RUNNING).exit is None
    arguments = Path(f"/proc/{rig.pid(machine)}/cmdline").read_bytes().split(b"\0")
    assert str(uuid.UUID(vm_id)).encode() in arguments

    hypervisor.stop(vm_id)
    ended = rig.wait_to_hear(machine, DomainState.STOPPED)
    assert ended.exit is not None
    assert (ended.exit.exit_code, ended.exit.reason) == (137, "Error")
    assert hypervisor.observe(vm_id) == ended

    hypervisor.remove(vm_id)
    assert vm_id not in hypervisor.list()
    assert hypervisor.observe(vm_id) is None


def test_removing_a_running_vm_leaves_nothing(rig: Rig) -> None:
    """Neither process nor log nor any other file of the domain's stays."""
    with rig.running() as machine:
        pid = rig.pid(machine)
        rig.hypervisor.remove(machine.vm.id)
        assert not Path(f"/proc/{pid}").exists()
        short = machine.vm.id[:12]
        root = rig.node.data_dir / "libvirt"
        assert [p for p in root.rglob("*") if short in p.name] == []
        assert not list((rig.node.state_dir("libvirt_qemu") / "runs").iterdir())


def test_an_emulator_that_cannot_be_found_is_ended_by_libvirt(rig: Rig) -> None:
    """The driver's pid file may be out of our sight."""
    with rig.running() as machine:
        pid = rig.pid(machine)
        (file,) = (rig.node.data_dir / "libvirt/run/qemu").glob(f"*{machine.vm.id[:12]}*.pid")
        file.unlink()
        rig.hypervisor.stop(machine.vm.id)
        assert not Path(f"/proc/{pid}").exists()
        ended = rig.wait_for_end(machine)
        assert (ended.exit_code, ended.message) == (137, "ended by force")


def test_removing_stopping_and_shutting_down_what_is_not_there_is_fine(rig: Rig) -> None:
    """The inverses of define and start are idempotent."""
    unknown = uuid.uuid4().hex
    for call in (rig.hypervisor.remove, rig.hypervisor.stop, rig.hypervisor.shutdown):
        call(unknown)
    machine = rig.define()
    rig.hypervisor.stop(machine.vm.id)
    rig.hypervisor.shutdown(machine.vm.id)
    assert rig.hypervisor.observe(machine.vm.id) == Observation(
        vm_id=machine.vm.id, state=DomainState.DEFINED
    )
    rig.hypervisor.remove(machine.vm.id)
    rig.hypervisor.remove(machine.vm.id)


def test_a_guest_obeys_the_power_button(rig: Rig) -> None:
    """shutdown returns at once; the guest's own power-off is a completed run."""
    with rig.running() as machine:
        rig.hypervisor.shutdown(machine.vm.id)
        ended = rig.wait_for_end(machine)
        assert (ended.exit_code, ended.reason) == (0, "Completed")
        assert ended.finished_at > 0


def test_a_guest_that_powers_off_has_completed(rig: Rig) -> None:
    """Without anybody's asking."""
    with rig.running() as machine:
        rig.type(machine, b"o")
        ended = rig.wait_for_end(machine)
        assert (ended.exit_code, ended.reason) == (0, "Completed")


def test_a_panic_is_an_error_that_says_so(rig: Rig) -> None:
    """The guest's kernel tells by the pvpanic device."""
    with rig.running() as machine:
        rig.type(machine, b"p")
        ended = rig.wait_for_end(machine)
        assert (ended.exit_code, ended.reason) == (1, "Error")
        assert "panic" in ended.message


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGKILL, 137, "died"), (signal.SIGTERM, 143, "signal")]
)
def test_a_killed_emulator_is_an_error_that_says_so(
    rig: Rig, number: int, code: int, words: str
) -> None:
    """It is told from a guest that powered off and from a VM we stopped."""
    with rig.running() as machine:
        # By another process than libvirt's, which is this one.
        subprocess.run(["kill", f"-{number:d}", str(rig.pid(machine))], check=True)
        ended = rig.wait_for_end(machine)
        assert (ended.exit_code, ended.reason) == (code, "Error")
        assert words in ended.message
        seen = rig.hypervisor.observe(machine.vm.id)
        assert seen == Observation(vm_id=machine.vm.id, state=DomainState.STOPPED, exit=ended)


def test_a_reset_goes_on(rig: Rig) -> None:
    """A guest that reboots stays the same running VM."""
    with rig.running() as machine:
        pid = rig.pid(machine)
        rig.type(machine, b"r")
        until(lambda: rig.console(machine).count(b"ready") == 2, "the second greeting")
        assert rig.pid(machine) == pid


def test_a_paused_vm_is_paused_not_ended(rig: Rig) -> None:
    """Also if another client of libvirt paused it."""
    with rig.running() as machine, _connection(rig) as connection:
        domain = connection.lookupByUUIDString(machine.vm.id)
        domain.suspend()
        rig.wait_to_hear(machine, DomainState.PAUSED)
        domain.resume()
        rig.wait_to_hear(machine, DomainState.RUNNING)


def test_starting_a_running_vm_again_changes_nothing(rig: Rig) -> None:
    """A retried start finds its work done."""
    with rig.running() as machine:
        pid = rig.pid(machine)
        rig.hypervisor.start(machine.vm.id)
        assert rig.pid(machine) == pid


def test_a_vm_that_was_stopped_this_moment_is_started_again(rig: Rig) -> None:
    """libvirt takes it for a running one until it has seen its emulator end."""
    with rig.running() as machine:
        for _ in range(5):
            before = rig.pid(machine)
            rig.hypervisor.stop(machine.vm.id)
            rig.start(machine)
            assert rig.pid(machine) != before
            seen = rig.hypervisor.observe(machine.vm.id)
            assert seen is not None
            assert seen.state is DomainState.RUNNING
            rig.wait_for_console(machine, b"ready")


def test_the_end_of_a_former_run_that_is_heard_late_does_not_end_the_one_that_lives(
    rig: Rig,
) -> None:
    with rig.running() as machine:
        vm_id, pid = machine.vm.id, rig.pid(machine)
        stopped, destroyed = (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED,
        )
        told: list[Observation] = []
        late = DomainEvent(vm_id, "former", stopped, destroyed)
        hypervisor: Any = rig.hypervisor
        hypervisor._changes.on_event(late, told.append)
        assert told == []
        # A start of a VM that runs and is on record as ended would take it for a dead one.
        rig.hypervisor.start(vm_id)
        assert rig.pid(machine) == pid


def test_starting_an_unknown_vm_is_not_found(rig: Rig) -> None:
    """There is nothing to start."""
    with pytest.raises(NotFound, match="no domain"):
        rig.hypervisor.start(uuid.uuid4().hex)


def test_what_the_launch_adds_reaches_the_emulator(rig: Rig) -> None:
    """Arguments, environment and descriptors do; our own variables do not."""
    reading, writing = os.pipe()
    os.close(writing)
    part = LaunchPart(
        arguments=("-add-fd", "set=77,fd={fd:pipe}"),
        environment={"COLOUR": "blue"},
        fds=(LaunchFd(name="pipe", fd=reading),),
    )
    with rig.running(part) as machine:
        process = Path(f"/proc/{rig.pid(machine)}")
        arguments = process.joinpath("cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert arguments[0].endswith(b"/vmwrapper") or arguments[0].endswith(b"qemu-system-x86_64")
        assert arguments[-2] == b"-add-fd"
        environment = process.joinpath("environ").read_bytes().split(b"\0")
        assert b"COLOUR=blue" in environment
        assert not [v for v in environment if v.startswith(b"VIRTLET_")]
        assert process.joinpath("exe").readlink() == Path("/usr/bin/qemu-system-x86_64")
        assert process.stat().st_uid == machine.vm.uid


def test_the_guest_agents_socket_is_ours_alone(rig: Rig) -> None:
    """libvirt leaves the channel to us: a client gets through to the guest's port."""
    with rig.running() as machine, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(machine.agent_socket))
        with _connection(rig) as connection:
            document = connection.lookupByUUIDString(machine.vm.id).XMLDesc()
        assert "org.qemu.guest_agent.0" not in document.split("<qemu:override")[0]


def test_consumption_is_told_by_one_call(rig: Rig) -> None:
    """CPU time grows, memory is the flavor's."""
    with rig.running() as machine:
        first = rig.hypervisor.stats()[machine.vm.id]
        assert first.cpu_time > 0
        assert first.vcpus == 1
        assert first.balloon == machine.flavor.memory
        until(lambda: rig.hypervisor.stats()[machine.vm.id].cpu_time > first.cpu_time, "CPU time")
    assert machine.vm.id not in rig.hypervisor.stats()


def test_an_emulators_log_is_cut_and_its_next_line_follows(rig: Rig) -> None:
    """Whatever it writes; the end of what was there is kept."""
    hypervisor: Any = rig.hypervisor
    with rig.running() as machine:
        stderr = Path(f"/proc/{rig.pid(machine)}/fd/2")
        log = Path(os.readlink(stderr))
        before = log.read_bytes()
        assert hypervisor.cut_logs() == INTERVAL
        assert log.read_bytes() == before, "a short one is left alone"
        with log.open("ab") as flood:
            for number in range(LONGEST // 100 + 1):
                flood.write(f"{number:099}\n".encode())
        hypervisor.cut_logs()
        text = log.read_bytes()
        assert len(text) <= KEPT + 100
        assert text.endswith(f"{LONGEST // 100:099}\n".encode())
        assert text.startswith(b"virtlet: what stood here was cut off")
        # It appends, so that the kernel puts its next line there.
        flags = (stderr.parent.parent / "fdinfo" / "2").read_text().splitlines()[1].split()[1]
        assert int(flags, 8) & os.O_APPEND
    assert not log.exists()


def test_a_log_that_is_large_in_name_alone_is_left_and_a_link_is_not_followed(
    tmp_path: Path,
) -> None:
    cut(tmp_path / "none")
    sparse, other, link = (tmp_path / name for name in ("sparse", "other", "link"))
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    cut(sparse)
    assert sparse.stat().st_size == 1 << 40
    other.write_bytes(bytes(LONGEST + 4096))
    link.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        cut(link)
    assert other.stat().st_size == LONGEST + 4096


def test_an_emulator_that_does_not_answer_holds_up_nobodys_statistics(rig: Rig) -> None:
    """Its own are what is known without it, and the calls that wait for it end with its silence."""
    with rig.running() as other, rig.running() as machine:
        pid = rig.pid(machine)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                with ThreadPoolExecutor(1) as pool:
                    stats = pool.submit(rig.hypervisor.stats).result(60)
                assert stats[other.vm.id].balloon == other.flavor.memory
                assert stats[machine.vm.id].pid == pid
                assert rig.hypervisor.process(machine.vm.id) == pid
            until(lambda: _measuring() == 1, "the end of all calls but the one that waits")
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: not _measuring(), "the end of the calls that waited")
        assert set(rig.hypervisor.stats()) == {other.vm.id, machine.vm.id}


def _measuring() -> int:
    """Calls for statistics that are under way."""
    return sum(thread.name == "libvirt-measure" for thread in threading.enumerate())


def test_a_document_that_libvirt_refuses_is_an_invalid_argument(rig: Rig) -> None:
    """And nothing is defined."""
    machine = rig.machine()
    document = rig.document(machine)
    _set(document, "os/type", "arm")
    with pytest.raises(InvalidArgument, match="OS"):
        rig.hypervisor.define(machine, document)
    assert rig.hypervisor.observe(machine.vm.id) is None


def test_defining_again_replaces(rig: Rig) -> None:
    """A retried create may bring another document and even another name."""
    machine = rig.define()
    other = rig.document(machine)
    _set(other, "memory", str(128 << 20))
    _set(other, "name", "renamed")
    rig.hypervisor.define(machine, other)
    with _connection(rig) as connection:
        domain = connection.lookupByUUIDString(machine.vm.id)
        assert (domain.name(), domain.maxMemory()) == ("renamed", 128 << 10)
    rig.hypervisor.remove(machine.vm.id)


def _set(document: Element, path: str, text: str) -> None:
    element = document.find(path)
    assert element is not None
    element.text = text


def _missing_disk(machine: Machine) -> Machine:
    return evolve(machine, root=Disk(path=machine.vm.directory / "nowhere.img", format="raw"))


def test_a_missing_disk_fails_the_start_and_is_named(rig: Rig) -> None:
    """libvirt's own reason is passed on, and the VM counts as never started."""
    machine = rig.define(_missing_disk(rig.machine()))
    with pytest.raises(FailedPrecondition, match=r"nowhere\.img"):
        rig.start(machine)
    assert rig.hypervisor.observe(machine.vm.id) == Observation(
        vm_id=machine.vm.id, state=DomainState.DEFINED
    )
    rig.hypervisor.remove(machine.vm.id)


def test_qemus_last_words_are_in_the_error(rig: Rig) -> None:
    """Bounded, in one line, and without the command line or the token."""
    machine = rig.define()
    with pytest.raises(FailedPrecondition, match="nonsense") as failure:
        rig.start(machine, LaunchPart(arguments=("-nonsense",)))
    text = str(failure.value)
    assert len(text) < 1000
    assert "\n" not in text
    assert machine.environment[ENV_TOKEN] not in text
    rig.hypervisor.remove(machine.vm.id)


def test_the_wrappers_last_words_are_in_the_error(rig: Rig) -> None:
    """A launch that is not armed is refused, and the start says why."""
    machine = rig.define(rig.machine(shared=True))
    with pytest.raises(FailedPrecondition, match="vmwrapper: the manager refused the launch"):
        rig.hypervisor.start(machine.vm.id)
    rig.hypervisor.remove(machine.vm.id)


@pytest.mark.parametrize("instance", [None, "another manager"])
def test_foreign_domains_are_never_touched(rig: Rig, instance: str | None) -> None:
    """Neither those without our mark nor those of another manager."""
    machine = rig.machine()
    metadata = ""
    if instance is not None:
        metadata = (
            '<metadata><v:vm xmlns:v="urn:virtlet:domain:1" '
            f'instance="{instance}" id="{machine.vm.id}"/></metadata>'
        )
    name = rig.document(machine).findtext("name")
    assert name is not None
    foreign_document = _FOREIGN.format(
        name=name,
        uuid=uuid.UUID(machine.vm.id),
        metadata=metadata,
        emulator=rig.node.vmwrapper,
    )
    with _connection(rig) as connection:
        foreign = connection.defineXML(foreign_document)
        try:
            vm_id = machine.vm.id
            assert vm_id not in rig.hypervisor.list()
            assert rig.hypervisor.observe(vm_id) is None
            with pytest.raises(NotFound):
                rig.hypervisor.start(vm_id)
            with pytest.raises(AlreadyExists, match="not ours"):
                rig.define(machine)
            rig.hypervisor.remove(vm_id)
            with pytest.raises(AlreadyExists, match="already exists"):
                other = rig.machine()
                document = rig.document(other)
                _set(document, "name", name)
                rig.hypervisor.define(other, document)
            assert connection.lookupByUUIDString(vm_id).name() == name
        finally:
            foreign.undefine()


def test_health_and_info_are_known_at_once(rig: Rig) -> None:
    """The embedded driver is always there."""
    assert rig.hypervisor.health().ready
    info = rig.hypervisor.info()
    assert info.name == "QEMU"
    assert info.accelerator == "qemu"
    assert info.version[0].isdigit()


@contextmanager
def _connection(rig: Rig) -> Iterator[Any]:
    """A connection of the test's own to the driver that runs in this process."""
    connection = libvirt.open(f"qemu:///embed?root={rig.node.data_dir / 'libvirt'}")
    try:
        yield connection
    finally:
        connection.close()


def test_required_features_are_compared_with_the_nodes_cpu(rig: Rig) -> None:
    """By libvirt's word, of the CPU that QEMU emulates here."""
    assert rig.hypervisor.lacks(Flavor(cpu_features={"sse2": "require", "vmx": "disable"})) == ""
    said = rig.hypervisor.lacks(Flavor(cpu_features={"sse2": "require", "amx-tile": "require"}))
    assert "has no amx-tile, which cpu_features require" in said


def test_a_start_takes_few_commands_of_the_monitor(rig: Rig) -> None:
    """The VM's CPU is known all the same. The thread that libvirt has for a VM writes them."""
    machine = rig.machine()
    flavor = evolve(machine.flavor, cpu_model="Nehalem", cpu_features={"aes": "require"})
    with rig.running(machine=evolve(machine, flavor=flavor)), rig.domain(machine) as domain:
        name = thread_of(domain.name())
        (thread,) = (
            path.parent
            for path in Path("/proc/self/task").glob("*/comm")
            if path.read_text().strip() == name
        )
        counts = dict(line.split(": ") for line in (thread / "io").read_text().splitlines())
        # Several writes are one command; it took 2400 where each of 464 features had its own.
        assert 50 < int(counts["syscw"]) < 800
        cpu = ElementTree.fromstring(domain.XMLDesc()).find("cpu")
        assert cpu is not None
        assert cpu.findtext("model") == "Nehalem"
        known = {feature.get("name"): feature.get("policy") for feature in cpu.iter("feature")}
        assert known == {"aes": "require", "hypervisor": "require"}
