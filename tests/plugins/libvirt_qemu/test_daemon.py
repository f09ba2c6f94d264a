"""VMs by a real libvirtd, which dies, hangs and comes back."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.plugins.libvirt_qemu.daemon import Daemon
from tests.plugins.libvirt_qemu.rig import Rig, make_open_node, open_directory
from tests.polling import until
from virtlet.errors import FailedPrecondition, Unavailable
from virtlet.model.hypervisor import DomainState
from virtlet.model.launch import LaunchPart
from virtlet.plugins.libvirt_qemu.libvirt_process import adopt_orphans
from virtlet.plugins.libvirt_qemu.qemu_conf import tell_of_owner

REPORTED_WITHIN = 15.0
"""Seconds until a lost libvirt must show in the health: five, and room for a busy machine."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    # The daemon's emulators fall to this process, and stopping them takes as long as that takes.
    adopt_orphans()
    with open_directory() as directory:
        daemon = Daemon(directory)
        daemon.start()
        yield daemon
        daemon.stop()


@pytest.fixture(scope="module")
def rig(daemon: Daemon) -> Iterator[Rig]:
    with open_directory() as directory:
        rig = Rig(make_open_node(directory), daemon.uri)
        rig.open()
        yield rig
        rig.close()


def test_a_vm_comes_and_goes(rig: Rig) -> None:
    """The same way as with the embedded driver."""
    with rig.running() as machine:
        assert rig.hypervisor.list()[machine.vm.id].state is DomainState.RUNNING
        assert rig.hypervisor.stats()[machine.vm.id].cpu_time > 0
        owner = os.stat(f"/proc/{rig.pid(machine)}").st_uid
        assert owner == machine.vm.uid
        before = machine.root.path.stat()
        rig.hypervisor.shutdown(machine.vm.id)
        ended = rig.wait_for_end(machine)
        assert ended.reason == "Completed"
        # The daemon's dynamic ownership must not get at our files.
        assert machine.root.path.stat().st_uid == before.st_uid
    assert rig.hypervisor.observe(machine.vm.id) is None


def test_with_the_advised_configuration_its_directories_are_roots(
    daemon: Daemon, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while a VM runs as `emulatorUser`, and nothing is told of them."""
    with rig.running(machine=rig.machine(shared=True)) as machine:
        assert os.stat(f"/proc/{rig.pid(machine)}").st_uid == rig.node.emulator_uid
        # A domain's own, which the manager takes back, is where it does not see it here.
        for path in (daemon.root / "run/qemu", daemon.root / "lib/qemu", daemon.root / "log/qemu"):
            there = [path, *(item for item in path.iterdir() if "domain-" not in item.name)]
            owners = {str(item): os.lstat(item).st_uid for item in there}
            assert set(owners.values()) == {0}, owners
        tell_of_owner(daemon.root / "run/qemu", rig.node)
    assert "qemu.conf" not in caplog.text


def test_a_failed_start_says_why(rig: Rig) -> None:
    """The emulator's words come through the daemon too."""
    machine = rig.define()
    with pytest.raises(FailedPrecondition, match="nonsense"):
        rig.start(machine, LaunchPart(arguments=("-nonsense",)))
    rig.hypervisor.remove(machine.vm.id)


def test_a_killed_daemon_is_reported_and_vms_stay(rig: Rig, daemon: Daemon) -> None:
    """Calls fail as unavailable meanwhile; what ended meanwhile is told after it is back."""
    with rig.running() as stays, rig.running() as dies:
        pid = rig.pid(dies)
        killed_at = time.monotonic()
        daemon.kill()
        until(lambda: not rig.hypervisor.health().ready, "bad health", REPORTED_WITHIN)
        assert time.monotonic() - killed_at < REPORTED_WITHIN
        assert rig.hypervisor.health().reason == "LibvirtUnavailable"
        for call in (rig.hypervisor.observe, rig.hypervisor.start, rig.hypervisor.stop):
            with pytest.raises(Unavailable):
                call(stays.vm.id)
        os.kill(pid, signal.SIGKILL)

        daemon.start()
        until(lambda: rig.hypervisor.health().ready, "good health")
        ended = rig.wait_for_end(dies)
        assert ended.reason == "Error"
        assert rig.hypervisor.list()[stays.vm.id].state is DomainState.RUNNING
        # Events flow again.
        rig.type(stays, b"o")
        rig.wait_to_hear(stays, DomainState.STOPPED)


def test_a_hung_daemon_is_reported(rig: Rig, daemon: Daemon) -> None:
    """It is told by its silence, and calls under way wait for it rather than fail."""
    answers: list[object] = []
    daemon.send(signal.SIGSTOP)
    try:
        call = threading.Thread(target=lambda: answers.append(rig.hypervisor.list()))
        call.start()
        until(lambda: not rig.hypervisor.health().ready, "bad health", REPORTED_WITHIN)
        assert "hangs" in rig.hypervisor.health().message
    finally:
        daemon.send(signal.SIGCONT)
    until(lambda: rig.hypervisor.health().ready, "good health")
    call.join()
    assert len(answers) == 1


def test_slow_calls_leave_room_for_others(rig: Rig) -> None:
    """Ten starts at a time do not hold up a look: no connection has more calls than it can take."""
    machines = [rig.define() for _ in range(10)]
    threads = [threading.Thread(target=rig.start, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        before = time.monotonic()
        rig.hypervisor.health()
        rig.hypervisor.observe("0" * 32)
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.01)
    try:
        assert slowest < 5.0
        seen = rig.hypervisor.list()
        assert all(seen[machine.vm.id].state is DomainState.RUNNING for machine in machines)
    finally:
        removals = [
            threading.Thread(target=rig.hypervisor.remove, args=(machine.vm.id,))
            for machine in machines
        ]
        for removal in removals:
            removal.start()
        for removal in removals:
            removal.join()


def test_without_a_daemon_open_is_unavailable(rig: Rig) -> None:
    """The message names the libvirt that was tried."""
    with open_directory() as directory:
        other = Rig(make_open_node(directory), "qemu+unix:///system?socket=/nowhere/libvirt-sock")
        with pytest.raises(Unavailable, match="/nowhere/libvirt-sock"):
            other.hypervisor.open()
        assert not other.hypervisor.health().ready
        other.hypervisor.close()


def test_a_daemon_that_comes_and_goes_costs_no_descriptors(rig: Rig, daemon: Daemon) -> None:
    """What was open to the dead one is closed."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    def restart() -> int:
        daemon.kill()
        until(lambda: not rig.hypervisor.health().ready, "bad health")
        daemon.start()
        until(lambda: rig.hypervisor.health().ready, "good health")
        time.sleep(1.5)  # the liveness probe has a connection of its own
        return count()

    most = max(restart(), restart())
    restart()
    restart()
    until(lambda: count() <= most, "no more descriptors than before")
