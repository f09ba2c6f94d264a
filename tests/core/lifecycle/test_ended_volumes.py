"""A kubelet takes a pod's volumes away when its VM has ended: nothing of ours holds them then."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from virtlet.core.store.records import VmPhase
from virtlet.errors import FailedPrecondition
from virtlet.host.mounts import unmount_below
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import VmExit

DONE = VmExit(exit_code=0, reason="Completed")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A volume that the kubelet has mounted, with a file in it."""
    path = tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], check=True)
    (path / "file").write_text("kept")
    yield path
    unmount_below(path)


@pytest.fixture
def pod(manager: Manager) -> str:
    return manager.run()


@pytest.fixture
def vm(manager: Manager, node: Node, pod: str, volume: Path) -> Iterator[str]:
    """A VM that is made, and has the volume below its directory."""
    vm_id = manager.create(pod)
    _mount(node, vm_id, volume)
    yield vm_id
    unmount_below(_place(node, vm_id))


def _place(node: Node, vm_id: str) -> Path:
    return node.root / "volumes" / vm_id / "volume-0"


def _mount(node: Node, vm_id: str, volume: Path) -> None:
    _place(node, vm_id).mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", volume, _place(node, vm_id)], check=True)


def test_a_volume_is_let_go_when_the_guest_ends_and_not_before(
    manager: Manager, node: Node, vm: str, volume: Path
) -> None:
    manager.start(vm)
    assert _place(node, vm).is_mount()
    node.hypervisor.end(vm, DONE)
    assert not _place(node, vm).is_mount()
    assert manager.vm(vm).phase is VmPhase.EXITED
    assert (volume / "file").read_text() == "kept"
    manager.remove(vm)
    assert (volume / "file").read_text() == "kept"


def test_a_volume_is_let_go_when_the_vm_is_ended_by_force(
    manager: Manager, node: Node, vm: str
) -> None:
    manager.start(vm)
    manager.stop(vm)
    assert not _place(node, vm).is_mount()


def test_a_volume_is_let_go_when_the_vm_does_not_start(
    manager: Manager, node: Node, vm: str
) -> None:
    node.faults.once["start"] = FailedPrecondition("no emulator")
    with pytest.raises(FailedPrecondition, match="no emulator"):
        manager.start(vm)
    assert not _place(node, vm).is_mount()


def test_a_volume_stays_as_long_as_a_start_that_failed_may_be_tried_again(
    managers: Managers, node: Node, vm: str
) -> None:
    node.faults.once["start"] = FailedPrecondition("no emulator")
    managers.now.at = {"vm-failed:before-commit": Killed()}
    with pytest.raises(Killed):
        managers.now.start(vm)
    manager = managers.restart()
    assert manager.vm(vm).phase is VmPhase.CREATED
    assert _place(node, vm).is_mount()
    manager.start(vm)


def test_a_volume_of_a_vm_that_never_ran_is_let_go_with_its_pod(
    manager: Manager, node: Node, pod: str, vm: str
) -> None:
    manager.create(pod, attempt=1)
    assert _place(node, vm).is_mount()
    manager.stop_pod(pod)
    assert not _place(node, vm).is_mount()


def test_a_volume_is_let_go_before_the_end_is_told(manager: Manager, node: Node, vm: str) -> None:
    manager.start(vm)
    manager.at = {"vm-exited:before-commit": Killed()}
    with pytest.raises(Killed):
        node.hypervisor.end(vm, DONE)
    assert not _place(node, vm).is_mount()
    assert manager.vm(vm).phase is VmPhase.RUNNING


def test_a_volume_of_a_vm_that_ended_while_nobody_watched_is_let_go(
    managers: Managers, node: Node, vm: str
) -> None:
    managers.now.start(vm)
    node.hypervisor.callback = None
    node.hypervisor.domains[vm] = DomainState.STOPPED
    assert _place(node, vm).is_mount()
    managers.restart()
    assert not _place(node, vm).is_mount()


def test_a_volume_that_an_earlier_manager_held_of_an_ended_vm_is_let_go(
    managers: Managers, node: Node, vm: str, volume: Path
) -> None:
    managers.now.store.change_vm(vm, lambda r: evolve(r, phase=VmPhase.EXITED, exit=DONE))
    managers.restart()
    assert not _place(node, vm).is_mount()
    assert (volume / "file").read_text() == "kept"


def test_a_restart_of_the_manager_leaves_the_volumes_of_a_vm_that_may_yet_run(
    managers: Managers, node: Node, vm: str
) -> None:
    managers.restart()
    assert _place(node, vm).is_mount()
    managers.now.start(vm)
    managers.restart()
    assert _place(node, vm).is_mount()
