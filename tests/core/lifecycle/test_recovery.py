"""What a manager does when it comes back: after a crash anywhere, after a reboot, with faults."""

import itertools
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from attrs import evolve

from tests import confined
from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.lifecycle.resize import resize_vm
from virtlet.core.store.records import PodPhase, VmPhase
from virtlet.errors import Unavailable, VirtletError
from virtlet.host import netns
from virtlet.model.disk import Share
from virtlet.model.hypervisor import DomainState
from virtlet.model.resources import Resources
from virtlet.model.vm import VmExit

ROOT = Path(__file__).parents[3]
STEPS = ("run", "create", "start", "resize", "stop", "stop_pod", "remove_pod")


class Kubelet:
    """Asks for a pod's whole life, each step until it succeeds; a killed manager is restarted.

    A VM that ended instead of starting gets its next attempt, as a kubelet would see to.
    """

    def __init__(self, managers: Managers) -> None:
        self.managers = managers
        self.pod = self.vm = ""
        self.attempt = 0

    def live(self) -> None:
        """From nothing to nothing."""
        for step in STEPS:
            self.insist(step)

    def insist(self, step: str) -> None:
        """One step, over deaths and errors."""
        for _ in range(6):
            try:
                getattr(self, step)()
                return
            except Killed:
                self.managers.restart()
            except VirtletError:
                if self.vm and self.managers.now.vm(self.vm).phase is VmPhase.EXITED:
                    self.attempt += 1
        pytest.fail(f"{step} does not succeed")

    def run(self) -> None:
        self.pod = self.managers.now.run()

    def create(self) -> None:
        self.vm = self.managers.now.create(self.pod, self.attempt)

    def start(self) -> None:
        self.create()
        self.managers.now.start(self.vm)

    def resize(self) -> None:
        resize_vm(self.managers.now.context, self.vm, Resources(cpuset_cpus="0"))

    def stop(self) -> None:
        self.managers.now.stop(self.vm)

    def stop_pod(self) -> None:
        self.managers.now.stop_pod(self.pod)

    def remove_pod(self) -> None:
        self.managers.now.remove_pod(self.pod)


def _start_error(node: Node) -> None:
    node.faults.once["started"] = Unavailable("lost after the start")


def _no_fault(node: Node) -> None:
    pass


@pytest.mark.parametrize("fault", [_no_fault, _start_error])
def test_a_crash_at_any_place_also_of_a_start_that_fails_leaves_nothing_in_the_end(
    tmp_path: Path, fault: object
) -> None:
    numbers = itertools.count()

    def life(point: str) -> Manager:
        node = Node(tmp_path / str(next(numbers)))
        node.root.mkdir()
        managers = Managers(node)
        if point:
            managers.now.at[point] = Killed()
        fault(node)  # type: ignore[operator]
        first = managers.now
        kubelet = Kubelet(managers)
        for step in STEPS:
            kubelet.insist(step)
            if step == "start":
                assert node.hypervisor.running == {kubelet.vm}, point
            if step == "resize":
                assert node.hypervisor.sizes[kubelet.vm].cpus == frozenset({0})
                assert managers.now.vm(kubelet.vm).resources == Resources(cpuset_cpus="0"), point
            if step == "stop":
                assert node.hypervisor.running == set(), point
        assert node.left == [], point
        assert not managers.now.store.pods
        assert not first.at, f"{point} was not reached"
        managers.now.close()
        return first

    points = list(dict.fromkeys(life("").points))
    assert {"running:reverted", "network:adjusted", "network:served"} <= set(points)
    assert "vm-exited:committed" in points
    assert ("vm-failed:committed" in points) == (fault is _start_error)
    for point in points:
        life(point)


def test_a_crash_while_a_vm_goes_back_to_the_nodes_user_leaves_nothing_of_its_own_user(
    tmp_path: Path,
) -> None:
    """What its own user was to have is removed, and that user is nobody's."""
    given = itertools.count(2_000_000_000)

    def life(number: int, point: str) -> Manager:
        node = Node(tmp_path / str(number))
        node.root.mkdir()
        node.hypervisor.as_vm = True
        node.share = Share(
            host_path=node.root, guest_path="/s", tag="s", readonly=False, driver="9p"
        )
        managers = Managers(node)
        first = managers.now
        first.context.new_user = lambda: next(given)
        pod = first.run()
        if point:
            first.at[point] = Killed()
            with pytest.raises(Killed):
                first.create(pod, mounts=("/s",))
            assert not first.at, f"{point} was not reached"
            managers.restart()
            # A VM is there whole or not at all.
            for record in managers.now.store.vms.values():
                assert (record.vm.uid, record.phase) == (None, VmPhase.CREATED), point
            kept = {record.vm.directory for record in managers.now.store.vms.values()}
            assert set(managers.now.context.paths.vms.glob("*")) == kept, point
            managers.now.context.new_user = lambda: next(given)
        vm = managers.now.vm(managers.now.create(pod, mounts=("/s",))).vm
        emulators = managers.now.context.node
        files = [vm.directory, *vm.directory.iterdir()]
        assert {path.lstat().st_uid for path in files} == {emulators.emulator_uid}, point
        managers.now.stop_pod(pod)
        managers.now.remove_pod(pod)
        assert node.left == [], point
        managers.now.close()
        return first

    points = list(dict.fromkeys(life(0, "").points))
    points = points[points.index("vm-creating:committed") :]
    points = points[: points.index("vm-created:committed") + 1]
    assert "vm-shared:committed" in points
    for number, point in enumerate(points, 1):
        life(number, point)


def test_after_a_reboot_a_pod_without_its_namespace_is_not_ready_and_its_vm_exited(
    managers: Managers, node: Node, tmp_path: Path
) -> None:
    node.netns = tmp_path / "netns"
    netns.create(node.netns)
    try:
        pod = managers.now.run()
        vm = managers.now.create(pod)
        managers.now.start(vm)
        assert managers.restart().pod(pod).phase is PodPhase.READY
    finally:
        netns.delete(node.netns)
    # What a reboot leaves: the empty file that held the namespace, and domains that are off.
    node.netns.touch()
    node.hypervisor.domains[vm] = DomainState.DEFINED
    manager = managers.restart()
    assert manager.pod(pod).phase is PodPhase.NOT_READY
    assert node.networks == set()
    record = manager.vm(vm)
    assert record.phase is VmPhase.EXITED
    assert record.exit is not None
    assert record.exit.reason == "Lost"
    manager.remove_pod(pod)
    assert node.left == []


def test_a_vm_that_ended_while_nobody_watched_is_exited_as_the_hypervisor_says(
    managers: Managers, node: Node
) -> None:
    vm = managers.now.create(managers.now.run())
    managers.now.start(vm)
    node.hypervisor.callback = None
    node.hypervisor.end(vm, VmExit(exit_code=0, reason="Completed"))
    ended = managers.restart().vm(vm).exit
    assert ended is not None
    assert ended.reason == "Completed"


def test_a_stop_of_a_pod_that_a_crash_interrupted_is_finished(
    managers: Managers, node: Node
) -> None:
    pod = managers.now.run()
    vm = managers.now.create(pod)
    managers.now.start(vm)
    managers.now.at["pod-stopping:committed"] = Killed()
    with pytest.raises(Killed):
        managers.now.stop_pod(pod)
    assert managers.restart().vm(vm).phase is VmPhase.EXITED
    assert node.hypervisor.running == set()
    assert node.networks == set()


def test_what_cannot_be_undone_at_start_up_is_shown_and_the_rest_goes_on(
    managers: Managers, node: Node
) -> None:
    good = managers.now.run("good")
    managers.now.at["network:applied"] = Killed()
    with pytest.raises(Killed):
        managers.now.run("bad")
    node.faults.always["teardown_network"] = Unavailable("not yet")
    manager = managers.restart()
    assert manager.pod(good).phase is PodPhase.READY
    (bad,) = [r for r in manager.store.pods.values() if r.pod.id != good]
    assert bad.phase is PodPhase.NOT_READY
    node.faults.always.clear()
    manager.remove_pod(bad.pod.id)
    assert node.networks == {good}


def test_orphaned_domains_and_directories_are_removed_though_one_of_them_resists(
    managers: Managers, node: Node
) -> None:
    pod = managers.now.run()
    node.hypervisor.domains |= {"f" * 32: DomainState.RUNNING, "e" * 32: DomainState.RUNNING}
    node.faults.once["remove"] = Unavailable("one resists")
    (node.root / "volumes" / ("d" * 32)).mkdir(parents=True)
    (node.root / "pods" / "a-stray").write_text("a file where a directory should be")
    managers.restart()
    assert len(node.hypervisor.domains) == 1
    managers.restart()
    assert node.hypervisor.domains == {}
    assert {path.name for path in (node.root / "pods").iterdir()} == {pod, "a-stray"}
    assert list((node.root / "volumes").iterdir()) == []


def test_as_many_vms_as_a_node_may_have_are_taken_up_in_a_fraction_of_what_the_unit_allows(
    managers: Managers,
) -> None:
    """A kubelet runs 110 pods; a start that takes longer than the bound is killed."""
    for number in range(110):
        managers.now.start(managers.now.create(managers.now.run(f"pod{number}")))
    before = time.process_time()
    manager = managers.restart()
    used = time.process_time() - before
    assert {vm.phase for vm in manager.store.vms.values()} == {VmPhase.RUNNING}
    unit = confined.settings(ROOT / "deploy" / "virtlet.service")
    assert unit["Type"] == ["notify"]
    assert used < int(unit["TimeoutStartSec"][-1]) / 10


def test_what_is_mounted_in_an_orphaned_directory_stays_as_it_is(
    managers: Managers, node: Node, tmp_path: Path
) -> None:
    volume, orphan = tmp_path / "volume", node.root / "volumes" / ("d" * 32)
    volume.mkdir()
    (volume / "file").write_text("the pod's")
    (orphan / "volume-0").mkdir(parents=True)
    subprocess.run(["mount", "--bind", volume, orphan / "volume-0"], check=True)
    managers.restart()
    assert list((node.root / "volumes").iterdir()) == []
    assert (volume / "file").read_text() == "the pod's"


@pytest.mark.parametrize("ended", ["before", "meanwhile"])
def test_logs_that_cannot_be_written_do_not_hold_up_the_start_and_are_completed_later(
    managers: Managers, node: Node, ended: str
) -> None:
    vms = [managers.now.create(managers.now.run(name)) for name in ("one", "two", "three")]
    for vm in vms:
        managers.now.start(vm)
    managers.now.console_logs.stop()
    logs = node.root / "logs"
    shutil.rmtree(logs)
    logs.write_text("a file where the directory of logs should be")
    for vm in vms:
        (node.root / "run" / "vm" / vm[:12] / "console.out").write_text("last words\n")
    if ended == "before":
        for vm in vms:
            managers.now.store.change_vm(
                vm,
                lambda r: evolve(
                    r, phase=VmPhase.EXITED, exit=VmExit(exit_code=0, reason="Completed")
                ),
            )
    node.hypervisor.callback = None
    for vm in vms:
        node.hypervisor.end(vm, VmExit(exit_code=0, reason="Completed"))
    started = time.monotonic()
    manager = managers.restart()
    assert time.monotonic() - started < 8, "each log is waited for for ten seconds otherwise"
    assert {manager.vm(vm).phase for vm in vms} == {VmPhase.EXITED}
    logs.unlink()

    def written() -> list[str]:
        return [text for path in logs.rglob("0.log") if (text := path.read_text())]

    until(lambda: len(written()) == 3)
    assert [text.split(" ", 3)[3] for text in written()] == ["last words\n"] * 3
