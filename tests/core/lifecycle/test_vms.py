"""VMs up and down, with a hypervisor that fails."""

import stat
import threading
import time
from pathlib import Path

import pytest

from tests.fakes.manager import DISK, Manager, Node
from virtlet.core.lifecycle import pods, vms
from virtlet.core.store.records import PodPhase, VmPhase, VmRecord
from virtlet.errors import (
    FailedPrecondition,
    NotFound,
    PodBroken,
    ResourceExhausted,
    Unavailable,
    UndoIncomplete,
)
from virtlet.model.disk import Share
from virtlet.model.event import EventKind
from virtlet.model.launch import ENV_SOCKET
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.vm import VmConfig, VmExit, VmMetadata


@pytest.fixture
def pod(manager: Manager) -> str:
    """A pod that is up."""
    return manager.run()


@pytest.fixture
def vm(manager: Manager, pod: str) -> str:
    """A VM that runs."""
    vm_id = manager.create(pod)
    manager.start(vm_id)
    return vm_id


def _on_thread(work: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_vm_whose_definition_is_refused_leaves_nothing_of_itself(
    manager: Manager, node: Node, pod: str
) -> None:
    before = node.left
    node.faults.once["define"] = FailedPrecondition("bad document")
    with pytest.raises(FailedPrecondition, match="bad document"):
        manager.create(pod)
    assert not manager.store.vms
    assert node.left == before


def test_a_volume_that_nobody_serves_is_refused_by_name_and_leaves_nothing(
    manager: Manager, node: Node, pod: str
) -> None:
    """Also what was made of the VM before: its directory, its user."""
    before = node.left
    with pytest.raises(FailedPrecondition, match="serves the mount /s .from /s. of VM") as caught:
        manager.create(pod, mounts=("/s",))
    assert "take it out of the pod, or name a plugin" in str(caught.value)
    assert not manager.store.vms
    assert node.left == before
    manager.start(manager.create(pod))


def test_a_disk_that_can_be_neither_made_nor_released_goes_with_the_pod(
    manager: Manager, node: Node, pod: str
) -> None:
    node.faults.once["root_disk"] = ResourceExhausted("disk full")
    node.faults.once["release_root_disk"] = Unavailable("busy")
    with pytest.raises(ResourceExhausted, match="disk full") as caught:
        manager.create(pod)
    assert "disk[root] by plugin 'fake': busy" in caught.value.__notes__[0]
    assert len(node.disks) == 1
    manager.remove_pod(pod)
    assert node.left == []


def test_a_retry_of_a_failed_create_cleans_up_what_the_failure_left(
    manager: Manager, node: Node, pod: str
) -> None:
    node.faults.once["root_disk"] = ResourceExhausted("disk full")
    node.faults.once["release_root_disk"] = Unavailable("busy")
    with pytest.raises(ResourceExhausted):
        manager.create(pod)
    vm_id = manager.create(pod)
    assert set(manager.store.vms) == {vm_id}
    assert node.disks == {(vm_id, "root")}


@pytest.mark.parametrize("required", [True, False])
def test_a_vm_that_cannot_have_a_cgroup_does_not_start_unless_that_is_optional(
    manager: Manager, node: Node, *, required: bool
) -> None:
    manager.context.launches.cgroup_required = required  # type: ignore[misc]
    parent = "/virtlet-test-that-is-nowhere"
    metadata = PodMetadata(name="web", uid="uid", namespace="default", attempt=0)
    config = PodConfig(metadata=metadata, cgroup_parent=parent)
    vm_id = manager.create(pods.run_pod(manager.context, config, ""))
    if required:
        says = f"cgroup below {parent}: no hierarchy has the pod's; .*set vmCgroup to optional"
        with pytest.raises(FailedPrecondition, match=says):
            manager.start(vm_id)
        assert manager.vm(vm_id).phase is VmPhase.EXITED
    else:
        manager.start(vm_id)
        assert manager.vm(vm_id).phase is VmPhase.RUNNING


def test_a_start_that_fails_is_an_exit_with_its_reason_and_the_next_attempt_starts(
    manager: Manager, node: Node, pod: str
) -> None:
    vm_id = manager.create(pod)
    node.faults.once["start"] = FailedPrecondition("no emulator")
    with pytest.raises(FailedPrecondition, match="no emulator"):
        manager.start(vm_id)
    record = manager.vm(vm_id)
    assert record.phase is VmPhase.EXITED
    assert record.exit is not None
    assert (record.exit.reason, record.exit.message) == ("StartError", "no emulator")
    with pytest.raises(FailedPrecondition, match="make a new attempt"):
        manager.start(vm_id)
    manager.start(manager.create(pod, attempt=1))


def test_an_emulator_that_fetched_no_launch_is_ended_and_does_not_count_as_started(
    manager: Manager, node: Node, pod: str
) -> None:
    """It is neither in its jail nor in its cgroup."""
    node.hypervisor.requires_launch = True
    vm_id = manager.create(pod)
    with pytest.raises(FailedPrecondition, match=r"without its launch.*is ended"):
        manager.start(vm_id)
    assert manager.vm(vm_id).phase is VmPhase.EXITED
    assert node.hypervisor.running == set()


def test_a_start_that_finds_the_pod_broken_stops_the_pod_so_that_it_is_run_again(
    manager: Manager, node: Node, pod: str
) -> None:
    vm_id = manager.create(pod)
    node.faults.once["start"] = PodBroken("its network is damaged")
    with pytest.raises(PodBroken, match="its network is damaged"):
        manager.start(vm_id)
    assert manager.vm(vm_id).phase is VmPhase.EXITED
    assert manager.pod(pod).phase is PodPhase.NOT_READY
    assert [e.kind for e in manager.told.events][-2:] == [
        EventKind.VM_STOPPED,
        EventKind.POD_STOPPED,
    ]
    manager.stop_pod(pod)
    assert node.networks == set()
    manager.run(attempt=1)


def test_an_emulator_that_a_failed_start_left_is_ended_before_another_starts(
    manager: Manager, node: Node, pod: str
) -> None:
    first = manager.create(pod)
    node.faults.once["started"] = Unavailable("connection lost")
    node.faults.always["stop"] = Unavailable("still lost")
    with pytest.raises(Unavailable, match="connection lost"):
        manager.start(first)
    assert node.hypervisor.running == {first}
    with pytest.raises(UndoIncomplete, match="still lost"):
        manager.create(pod, attempt=1)
    node.faults.always.clear()
    second = manager.create(pod, attempt=1)
    manager.start(second)
    assert node.hypervisor.running == {second}


def test_a_start_that_cannot_be_written_down_blocks_no_other(
    manager: Manager, node: Node, pod: str
) -> None:
    vm_id = manager.create(pod)
    full = ResourceExhausted("no space for the database")
    manager.at = {"vm-running:before-commit": full, "vm-failed:before-commit": full}
    with pytest.raises(ResourceExhausted):
        manager.start(vm_id)
    assert manager.vm(vm_id).phase is VmPhase.STARTING
    assert node.hypervisor.running == set()
    manager.start(manager.create(pod, attempt=1))
    assert manager.vm(vm_id).phase is VmPhase.EXITED


def test_a_guest_that_ended_before_its_start_was_written_is_exited(
    manager: Manager, node: Node, pod: str
) -> None:
    vm_id = manager.create(pod)
    node.hypervisor.on_start = lambda vm: node.hypervisor.end(
        vm, VmExit(exit_code=0, reason="Completed")
    )
    manager.start(vm_id)
    record = manager.vm(vm_id)
    assert record.phase is VmPhase.EXITED
    assert record.exit is not None
    assert record.exit.reason == "Completed"


def test_a_second_vm_beside_a_running_one_is_refused(manager: Manager, pod: str, vm: str) -> None:
    with pytest.raises(FailedPrecondition, match="a VM pod runs one container"):
        manager.create(pod, attempt=1)
    manager.start(vm)
    assert manager.vm(vm).phase is VmPhase.RUNNING


def test_a_guest_that_powers_off_in_its_grace_is_completed(manager: Manager, vm: str) -> None:
    manager.stop(vm, grace=5)
    ended = manager.vm(vm).exit
    assert ended is not None
    assert ended.reason == "Completed"


def test_a_guest_whose_power_button_fails_is_ended_by_force_after_its_grace(
    manager: Manager, node: Node, vm: str
) -> None:
    node.faults.always["shutdown"] = Unavailable("no button")
    started = time.monotonic()
    manager.stop(vm, grace=0.2)
    assert 0.2 <= time.monotonic() - started < 10
    ended = manager.vm(vm).exit
    assert ended is not None
    assert ended.exit_code == 137
    assert node.hypervisor.running == set()


def test_a_stop_that_the_hypervisor_cannot_do_now_says_so_and_the_vm_still_runs(
    manager: Manager, node: Node, vm: str
) -> None:
    node.faults.once["stop"] = Unavailable("libvirt is away")
    with pytest.raises(UndoIncomplete, match="libvirt is away"):
        manager.stop(vm)
    assert manager.vm(vm).phase is VmPhase.RUNNING
    manager.stop(vm)
    assert manager.vm(vm).phase is VmPhase.EXITED


def test_a_stop_during_a_start_waits_for_it_and_gives_the_guest_its_grace(
    manager: Manager, node: Node, pod: str
) -> None:
    vm_id = manager.create(pod)
    starting, go_on = threading.Event(), threading.Event()

    def slowly(_: str) -> None:
        starting.set()
        go_on.wait(5)

    node.hypervisor.on_start = slowly
    start = _on_thread(manager.start, vm_id)
    assert starting.wait(5)
    stop = _on_thread(manager.stop, vm_id, 5)
    go_on.set()
    start.join(5)
    stop.join(5)
    ended = manager.vm(vm_id).exit
    assert ended is not None
    assert ended.reason == "Completed"


def test_a_removal_of_the_pod_during_a_create_waits_for_it_and_takes_it_all(
    manager: Manager, node: Node, pod: str
) -> None:
    creating, go_on = threading.Event(), threading.Event()

    class Waits(dict[str, BaseException]):
        def get(self, deed: str, default: object = None) -> None:  # type: ignore[override]
            if deed == "root_disk":
                creating.set()
                go_on.wait(5)

    node.faults.always = Waits()
    create = _on_thread(manager.create, pod)
    assert creating.wait(5)
    remove = _on_thread(manager.remove_pod, pod)
    go_on.set()
    create.join(5)
    remove.join(5)
    assert node.left == []
    assert not manager.store.vms


def test_one_end_is_told_once_however_many_see_it(manager: Manager, node: Node, vm: str) -> None:
    threads = [
        _on_thread(node.hypervisor.end, vm, VmExit(exit_code=0, reason="Completed")),
        _on_thread(manager.stop, vm),
        _on_thread(manager.stop, vm),
    ]
    for thread in threads:
        thread.join(5)
    kinds = [e.kind for e in manager.told.events if e.subject == vm]
    assert kinds.count(EventKind.VM_STOPPED) == 1


def test_a_token_in_the_name_of_an_image_that_is_not_there_is_not_told(
    manager: Manager, pod: str
) -> None:
    config = VmConfig(
        metadata=VmMetadata(name="guest"),
        image="virtlet.cloud/https://h/x?token=hunter2",
        log_path="guest/0.log",
    )
    with pytest.raises(NotFound, match="'virtlet.cloud/https://h/x' is not in the store") as caught:
        vms.create_vm(manager.context, pod, config)
    assert "hunter2" not in str(caught.value)


def test_a_start_of_an_unknown_vm_or_in_a_stopped_pod_is_refused(
    manager: Manager, pod: str
) -> None:
    with pytest.raises(NotFound, match="no container"):
        manager.start("0" * 32)
    vm_id = manager.create(pod)
    manager.stop_pod(pod)
    with pytest.raises(FailedPrecondition, match="is stopped"):
        manager.start(vm_id)


def _owner(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_a_vm_with_a_user_of_its_own_has_files_of_its_own(
    manager: Manager, node: Node, pod: str
) -> None:
    """Its emulator opens what is there and makes nothing; a disk of a plugin that does not know of
    users is given to it."""
    node.hypervisor.as_vm = True
    manager.context.new_user = lambda: 2_000_000_000
    vm = manager.vm(manager.create(pod)).vm
    paths = manager.context.paths
    assert (vm.uid, vm.gid) == (2_000_000_000, 2_000_000_000)
    assert _owner(vm.directory) == (0, vm.gid, 0o710)
    assert _owner(paths.vm_runtime(vm.id)) == (0, vm.gid, 0o710)
    assert _owner(vm.image.path) == (0, 0, 0o444)
    assert vm.image.path.read_bytes() == DISK
    assert _owner(vm.directory / "root")[:2] == (vm.uid, vm.gid)
    environment = node.hypervisor.machines[vm.id].environment
    assert environment[ENV_SOCKET] == str(paths.launch_socket(vm.id))
    manager.start(vm.id)
    for name in ("console.out", "console.in"):
        assert _owner(paths.vm_runtime(vm.id) / name) == (vm.uid, vm.gid, 0o600)
    manager.remove(vm.id)
    assert not vm.directory.exists()


def test_a_vm_of_a_hypervisor_that_knows_of_no_users_has_the_nodes(
    manager: Manager, pod: str
) -> None:
    """And files as before."""
    manager.context.new_user = lambda: 2_000_000_000
    vm = manager.vm(manager.create(pod)).vm
    assert (vm.uid, vm.gid) == (None, None)
    node = manager.context.node
    assert node.user_of(vm) == (node.emulator_uid, node.emulator_gid)
    assert _owner(vm.directory) == (node.emulator_uid, node.emulator_gid, 0o700)
    assert _owner(manager.context.paths.vm_runtime(vm.id)) == (0, 0, 0o711)


def test_a_vm_whose_shares_belong_to_emulators_has_the_nodes_user(
    manager: Manager, node: Node, pod: str
) -> None:
    """Else the next VM could not read what this one wrote there."""
    node.hypervisor.as_vm = True
    manager.context.new_user = lambda: 2_000_000_000
    found: dict[str, VmRecord] = {}
    for driver in ("9p", "virtiofs"):
        node.share = Share(
            host_path=node.root, guest_path="/s", tag="s", readonly=False, driver=driver
        )
        vm_id = manager.create(pod, attempt=len(found), mounts=("/s",))
        found[driver] = manager.vm(vm_id)
    emulators = manager.context.node
    shared, own = found["9p"].vm, found["virtiofs"].vm
    assert (shared.uid, own.uid) == (None, 2_000_000_000)
    assert _owner(shared.directory) == (emulators.emulator_uid, emulators.emulator_gid, 0o700)
    assert node.hypervisor.machines[shared.id].vm == shared
    launches = manager.context.launches
    assert node.hypervisor.machines[shared.id].environment[ENV_SOCKET] == str(launches.path)
