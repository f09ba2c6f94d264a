"""A hibernated VM has no emulator, is not taken for one that has ended, and goes on once."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.core.lifecycle.test_checkpoints import SHARE, change, kinds, started
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.cri import replies
from virtlet.core.guest_sessions.attach_and_forward import GuestDialer
from virtlet.core.guest_sessions.executions import running_machine
from virtlet.core.lifecycle import exits
from virtlet.core.lifecycle.checkpoints import checkpoint_vm
from virtlet.core.lifecycle.hibernation import hibernate_vm, resume_vm
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.network import Network, Nic
from virtlet.model.vm import VmExit

LEFT = {"vm-directories", "disk", "domain", "console", "cgroup", "hibernated"}


def hibernated(managers: Managers) -> str:
    vm_id = started(managers)
    hibernate_vm(managers.now.context, vm_id)
    return vm_id


def memory(manager: Manager, vm_id: str) -> Path:
    return manager.vm(vm_id).vm.directory / "hibernated" / "memory"


def test_its_memory_is_on_disk_and_its_emulator_has_ended(managers: Managers) -> None:
    manager, node = managers.now, managers.node
    vm_id = started(managers)
    before = manager.vm(vm_id)
    hibernate_vm(manager.context, vm_id)
    record = manager.vm(vm_id)
    assert record.phase is VmPhase.HIBERNATED
    assert node.hypervisor.running == set()
    assert node.networks == {record.vm.pod.id}
    assert set(kinds(manager, vm_id)) == LEFT
    file = memory(manager, vm_id)
    assert file.read_bytes() == b"memory"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    # A second one changes nothing.
    hibernate_vm(manager.context, vm_id)
    assert manager.vm(vm_id) == record

    resume_vm(manager.context, vm_id)
    assert node.hypervisor.loaded == {vm_id: b"memory"}
    assert node.hypervisor.running == {vm_id}
    assert manager.vm(vm_id) == evolve(before, resumes=1)
    assert not file.parent.exists()
    assert set(kinds(manager, vm_id)) == LEFT - {"hibernated"} | {"running"}
    resume_vm(manager.context, vm_id)
    assert manager.vm(vm_id).resumes == 1


def test_it_is_running_to_a_kubelet_and_hibernated_to_people(managers: Managers) -> None:
    vm_id = hibernated(managers)
    manager = managers.now
    record = manager.vm(vm_id)
    pod = record.vm.pod.id
    status = replies.vm_status(record)
    assert status.state == cri.CONTAINER_RUNNING
    assert status.finished_at == 0
    assert status.reason == "Hibernated"
    assert f"virtlet resume {pod[:12]}" in status.message
    assert '"phase": "hibernated"' in replies.vm_info(record, {})["info"]
    told = [event.topic for event in manager.told.events if event.topic]
    assert "Hibernated" in told


def test_what_needs_its_guest_is_refused_with_the_way_back(
    managers: Managers, tmp_path: Path
) -> None:
    vm_id = hibernated(managers)
    manager = managers.now
    pod = manager.vm(vm_id).vm.pod.id
    way = f"virtlet resume {pod[:12]}"
    with pytest.raises(FailedPrecondition, match=way):
        running_machine(manager.store, vm_id)
    with pytest.raises(FailedPrecondition, match=way):
        checkpoint_vm(manager.context, vm_id, tmp_path / "file")

    known = manager.store.known_pod(pod)
    nic = Nic(name="eth0", mac="52:54:00:00:00:01", mtu=1500, addresses=("10.0.0.2/24",))
    manager.store.put_pod(evolve(known, network=Network(netns=None, nics=(nic,))))
    with pytest.raises(FailedPrecondition, match=way):
        GuestDialer(manager.context).check(pod)


@pytest.mark.parametrize("late", [None, VmExit(exit_code=137, reason="Error")])
def test_the_end_of_its_emulator_is_not_its_own_even_if_told_late(
    managers: Managers, late: VmExit | None
) -> None:
    vm_id = hibernated(managers)
    context, hypervisor = managers.now.context, managers.node.hypervisor
    ended = Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=late)
    exits.on_change(context, ended)
    assert managers.now.vm(vm_id).phase is VmPhase.HIBERNATED
    resume_vm(context, vm_id)
    exits.on_change(context, ended)
    assert managers.now.vm(vm_id).phase is VmPhase.RUNNING
    # Its own end is another matter.
    hypervisor.end(vm_id, VmExit(exit_code=0, reason="Completed"))
    assert managers.now.vm(vm_id).phase is VmPhase.EXITED
    told = managers.now.vm(vm_id).exit
    assert told is not None
    assert told.reason == "Completed"


def _in(phase: VmPhase) -> Callable[[VmRecord], VmRecord]:
    return lambda record: evolve(record, phase=phase)


def _paused(record: VmRecord) -> VmRecord:
    return evolve(record, paused=True)


def _shared(record: VmRecord) -> VmRecord:
    assert record.machine is not None
    return evolve(record, machine=evolve(record.machine, volumes=(SHARE,)))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (_in(VmPhase.CREATED), "it does not run, but is created"),
        (_in(VmPhase.EXITED), "it does not run, but is exited"),
        (_paused, "it stands still"),
        (_shared, r"it has volumes .* shared directories \(/data\)"),
    ],
)
def test_what_has_no_checkpoint_cannot_be_hibernated(
    managers: Managers, how: Callable[[VmRecord], VmRecord], why: str
) -> None:
    vm_id = started(managers)
    change(managers.now, vm_id, how)
    with pytest.raises(FailedPrecondition, match=f"cannot be hibernated: {why}"):
        hibernate_vm(managers.now.context, vm_id)
    assert "hibernate" not in managers.node.faults.passed
    assert "hibernated" not in kinds(managers.now, vm_id)


@pytest.mark.parametrize("deed", ["hibernate", "written"])
@pytest.mark.parametrize("error", [FailedPrecondition("QEMU says no"), Unavailable("away")])
def test_one_that_fails_runs_on(managers: Managers, deed: str, error: VirtletError) -> None:
    vm_id = started(managers)
    managers.node.faults.once[deed] = error
    with pytest.raises(type(error)):
        hibernate_vm(managers.now.context, vm_id)
    runs_on(managers, vm_id)
    hibernate_vm(managers.now.context, vm_id)
    assert managers.now.vm(vm_id).phase is VmPhase.HIBERNATED


def runs_on(managers: Managers, vm_id: str) -> None:
    assert managers.now.vm(vm_id).phase is VmPhase.RUNNING
    assert managers.node.hypervisor.running == {vm_id}
    assert managers.node.hypervisor.unsettled == set()
    assert "hibernated" not in kinds(managers.now, vm_id)
    assert not memory(managers.now, vm_id).parent.exists()


def test_one_that_is_asked_to_stop_meanwhile_is_not_hibernated(managers: Managers) -> None:
    vm_id = started(managers)

    def stopping(record: VmRecord) -> VmRecord:
        return evolve(record, stopping=True)

    managers.node.hypervisor.on_hibernate = lambda: change(managers.now, vm_id, stopping)
    with pytest.raises(FailedPrecondition, match=r"was not hibernated: it is being stopped"):
        hibernate_vm(managers.now.context, vm_id)
    runs_on(managers, vm_id)


def test_a_disk_that_is_too_full_is_seen_before_the_guest_is_disturbed(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_id = started(managers)
    full = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ResourceExhausted, match=r"65Mi .*, and 1Mi are free"):
        hibernate_vm(managers.now.context, vm_id)
    assert "hibernate" not in managers.node.faults.passed
    runs_on(managers, vm_id)


def test_an_emulator_that_does_not_end_is_ended_by_the_next_call(managers: Managers) -> None:
    vm_id = started(managers)
    managers.node.faults.once["stop"] = Unavailable("libvirt is away")
    managers.node.hypervisor.pauses = True
    with pytest.raises(VirtletError, match="libvirt is away"):
        hibernate_vm(managers.now.context, vm_id)
    assert managers.now.vm(vm_id).phase is VmPhase.HIBERNATED
    hibernate_vm(managers.now.context, vm_id)
    assert managers.node.hypervisor.domains[vm_id] is DomainState.STOPPED
    assert "running" not in kinds(managers.now, vm_id)


@pytest.mark.parametrize("deed", ["start", "started"])
def test_one_that_does_not_go_on_is_still_hibernated(managers: Managers, deed: str) -> None:
    vm_id = hibernated(managers)
    managers.node.faults.once[deed] = FailedPrecondition("QEMU says no")
    with pytest.raises(FailedPrecondition, match="QEMU says no"):
        resume_vm(managers.now.context, vm_id)
    assert managers.now.vm(vm_id).phase is VmPhase.HIBERNATED
    assert managers.node.hypervisor.running == set()
    resume_vm(managers.now.context, vm_id)
    assert managers.now.vm(vm_id).phase is VmPhase.RUNNING


def test_its_memory_never_meets_a_disk_that_was_written_since(managers: Managers) -> None:
    vm_id = hibernated(managers)
    os.utime(managers.now.vm(vm_id).vm.directory / "root")
    with pytest.raises(FailedPrecondition, match="has ended: its disk was written"):
        resume_vm(managers.now.context, vm_id)
    lost(managers, vm_id)


def test_without_its_memory_it_has_ended(managers: Managers) -> None:
    vm_id = hibernated(managers)
    memory(managers.now, vm_id).unlink()
    with pytest.raises(FailedPrecondition, match="has ended: its memory is gone"):
        resume_vm(managers.now.context, vm_id)
    lost(managers, vm_id)


def lost(managers: Managers, vm_id: str) -> None:
    record = managers.now.vm(vm_id)
    assert record.phase is VmPhase.EXITED
    assert record.exit is not None
    assert record.exit.reason == "Lost"
    assert managers.node.hypervisor.loaded == {}
    assert "hibernated" not in kinds(managers.now, vm_id)


def test_it_can_be_stopped_and_removed_and_leaves_nothing(managers: Managers) -> None:
    vm_id = hibernated(managers)
    manager = managers.now
    pod = manager.vm(vm_id).vm.pod.id
    manager.stop(vm_id)
    record = manager.vm(vm_id)
    assert record.phase is VmPhase.EXITED
    assert record.exit is not None
    assert record.exit.exit_code == 137
    assert "hibernated" in record.exit.message
    assert not memory(manager, vm_id).parent.exists()
    with pytest.raises(FailedPrecondition, match="is exited"):
        resume_vm(manager.context, vm_id)
    manager.remove_pod(pod)
    assert managers.node.left == []


def test_its_pod_can_be_removed_at_once(managers: Managers) -> None:
    vm_id = hibernated(managers)
    managers.now.remove_pod(managers.now.vm(vm_id).vm.pod.id)
    assert managers.node.left == []


def test_another_vm_of_its_pod_waits(managers: Managers) -> None:
    vm_id = hibernated(managers)
    with pytest.raises(FailedPrecondition, match="one container at a time"):
        managers.now.create(managers.now.vm(vm_id).vm.pod.id, attempt=1)


def test_the_next_manager_has_it_hibernated_too(managers: Managers) -> None:
    vm_id = hibernated(managers)
    managers.restart()
    assert managers.now.vm(vm_id).phase is VmPhase.HIBERNATED
    assert memory(managers.now, vm_id).read_bytes() == b"memory"
    resume_vm(managers.now.context, vm_id)
    assert managers.node.hypervisor.loaded == {vm_id: b"memory"}


@pytest.mark.parametrize("deed", ["hibernate", "resume"])
def test_a_crash_at_any_place_leaves_a_vm_that_runs_or_one_that_is_hibernated(
    tmp_path: Path, deed: str
) -> None:
    """And nothing else: both can be hibernated, resumed and removed afterwards."""
    numbers = itertools.count()

    def life(point: str) -> list[str]:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        managers = Managers(Node(root))
        managers.node.hypervisor.pauses = True
        vm_id = started(managers)
        if deed == "resume":
            hibernate_vm(managers.now.context, vm_id)
        act = hibernate_vm if deed == "hibernate" else resume_vm
        passed = len(managers.now.points)
        if point:
            managers.now.at[point] = Killed()
            with pytest.raises(Killed):
                act(managers.now.context, vm_id)
        else:
            act(managers.now.context, vm_id)
        points = managers.now.points[passed:]
        managers.restart()
        manager, hypervisor = managers.now, managers.node.hypervisor
        until(
            lambda: (
                ("hibernated" in kinds(manager, vm_id))
                is (manager.vm(vm_id).phase is VmPhase.HIBERNATED)
            ),
            f"settled after {point}",
        )
        if manager.vm(vm_id).phase is VmPhase.HIBERNATED:
            assert hypervisor.domains[vm_id] is DomainState.STOPPED, point
            assert "running" not in kinds(manager, vm_id), point
        else:
            runs_on(managers, vm_id)
        hibernate_vm(manager.context, vm_id)
        resume_vm(manager.context, vm_id)
        runs_on(managers, vm_id)
        manager.remove_pod(manager.vm(vm_id).vm.pod.id)
        assert managers.node.left == [], point
        manager.close()
        return points

    points = list(dict.fromkeys(life("")))
    wanted = {
        "hibernate": {"hibernated:intended", "vm-hibernated:committed", "running:reverted"},
        "resume": {"running:applied", "vm-resumed:before-commit", "hibernated:reverted"},
    }[deed]
    assert wanted <= set(points)
    for point in points:
        life(point)
