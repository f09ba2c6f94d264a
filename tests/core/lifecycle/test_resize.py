"""VMs are resized as a whole or not at all, whatever fails on the way."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from attrs import asdict, define, evolve, field

from tests.core.lifecycle.conftest import Managers
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.manager import Manager, Node
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.core.lifecycle import pods
from virtlet.core.lifecycle.resize import resize_vm
from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from virtlet.host import cgroups, cpus
from virtlet.model.event import EventKind
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Resize
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.resources import Resources
from virtlet.model.vm import Machine, VmExit

GIB = 1 << 30
CPU = Resources(cpu_quota=50_000, cpu_period=100_000, cpu_shares=512)
BEFORE = Resize(vcpus=1, memory=5, cpus=frozenset({0}))
"""What every VM had, as the hypervisor says."""


@define
class Recorder(FakeHypervisor):
    """Remembers what it was asked for."""

    asked: list[Resize] = field(factory=list)
    defined: list[Machine] = field(factory=list)
    on_resize: Callable[[str], None] = lambda vm_id: None

    def define(self, machine: Machine, domain: Element | None) -> None:
        self.defined.append(machine)
        super().define(machine, domain)

    def resize(self, vm_id: str, change: Resize) -> Resize:
        self.asked.append(change)
        self.on_resize(vm_id)
        self.faults.strike("undo" if change == BEFORE else "resize")
        return BEFORE


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose hypervisor remembers."""
    node = Node(tmp_path)
    node.hypervisor = Recorder(node.faults)
    return node


@pytest.fixture
def hypervisor(node: Node) -> Recorder:
    """The node's."""
    assert isinstance(node.hypervisor, Recorder)
    return node.hypervisor


@pytest.fixture
def parent() -> Iterator[str]:
    """The pod's control group."""
    with pod_cgroup() as parent:
        yield parent


@pytest.fixture
def vm(managers: Managers, parent: str) -> Iterator[str]:
    """A VM that was made, in a pod with a control group."""
    config = PodConfig(
        metadata=PodMetadata(name="web", uid="uid", namespace="default", attempt=0),
        cgroup_parent=parent,
    )
    pod_id = pods.run_pod(managers.now.context, config, "")
    yield managers.now.create(pod_id)
    managers.now.remove_pod(pod_id)


@pytest.fixture
def running(manager: Manager, vm: str, parent: str) -> str:
    """A VM that runs."""
    manager.start(vm)
    if cgroups.unenforced(cgroups.find(parent, vm), CPU):
        pytest.skip("no writable control groups here")
    return vm


def _quota(parent: str, vm: str) -> str:
    for group in cgroups.find(parent, vm):
        for name in ("cpu.max", "cpu.cfs_quota_us"):
            if (group / name).exists():
                return (group / name).read_text().split()[0]
    raise AssertionError("no group has a quota")


def test_new_values_are_in_force_and_stored_and_the_unset_ones_stay(
    managers: Managers, hypervisor: Recorder, running: str, parent: str
) -> None:
    resize_vm(managers.now.context, running, CPU)
    resize_vm(managers.now.context, running, Resources(cpuset_cpus="0", memory_limit=GIB))
    for _ in range(2):
        known = managers.now.vm(running).resources
        assert known == evolve(CPU, cpuset_cpus="0", memory_limit=GIB)
        managers.restart()
    assert _quota(parent, running) == "50000"
    assert hypervisor.asked == [Resize(memory=GIB, cpus=frozenset({0}))]


def test_a_vm_with_cpus_of_its_own_keeps_them(
    manager: Manager, node: Node, hypervisor: Recorder, vm: str
) -> None:
    """A kubelet sends the same again; with others each vCPU would have to move."""
    record = manager.vm(vm)
    assert record.machine is not None
    config = evolve(record.vm.config, resources=Resources(cpuset_cpus="0"))
    own = evolve(record.vm, config=config)
    flavor = evolve(record.machine.flavor, dedicated_cpus=True)
    machine = evolve(record.machine, vm=own, flavor=flavor)
    manager.store.put_vm(evolve(record, vm=own, machine=machine))
    manager.start(vm)
    with pytest.raises(FailedPrecondition, match="cannot have other CPUs without a restart"):
        resize_vm(manager.context, vm, Resources(cpuset_cpus="0-1"))
    resize_vm(manager.context, vm, Resources(cpuset_cpus="0"))
    assert hypervisor.asked == []


def test_the_same_again_is_applied_again(
    manager: Manager, hypervisor: Recorder, running: str, parent: str
) -> None:
    """A crash may have come between a change and its record."""
    change = evolve(CPU, cpuset_cpus="0")
    resize_vm(manager.context, running, change)
    cgroups.limit(cgroups.find(parent, running), Resources(cpu_quota=20_000))
    resize_vm(manager.context, running, change)
    assert _quota(parent, running) == "50000"
    assert hypervisor.asked == [Resize(cpus=frozenset({0}))] * 2


def test_a_quota_and_a_period_may_come_alone(manager: Manager, running: str, parent: str) -> None:
    """Each keeps the other as it is."""
    resize_vm(manager.context, running, CPU)
    resize_vm(manager.context, running, Resources(cpu_quota=70_000))
    resize_vm(manager.context, running, Resources(cpu_period=200_000))
    assert _quota(parent, running) == "70000"
    known = manager.vm(running).resources
    assert known is not None
    assert (known.cpu_quota, known.cpu_period) == (70_000, 200_000)
    resize_vm(manager.context, running, Resources(cpu_quota=-1))
    assert _quota(parent, running) in ("max", "-1")


def test_a_hypervisor_that_refuses_leaves_the_groups_as_they_were(
    manager: Manager, node: Node, running: str, parent: str
) -> None:
    resize_vm(manager.context, running, CPU)
    node.faults.once["resize"] = FailedPrecondition("no room")
    with pytest.raises(FailedPrecondition, match="no room"):
        resize_vm(manager.context, running, Resources(cpu_quota=9_000, cpuset_cpus="0"))
    assert _quota(parent, running) == "50000"
    assert manager.vm(running).resources == CPU


def test_groups_that_refuse_keep_the_hypervisor_out_of_it(
    manager: Manager, hypervisor: Recorder, running: str
) -> None:
    """This kernel takes no quota of thousands of years."""
    with pytest.raises(FailedPrecondition, match="does not take"):
        resize_vm(manager.context, running, Resources(cpu_quota=1 << 62, cpuset_cpus="0"))
    assert hypervisor.asked == []
    assert manager.vm(running).resources == Resources()


def test_what_cannot_be_written_down_is_undone(
    manager: Manager, hypervisor: Recorder, running: str, parent: str
) -> None:
    before = _quota(parent, running)
    manager.at["vm-resized:before-commit"] = Unavailable("disk full")
    with pytest.raises(Unavailable, match="disk full"):
        resize_vm(manager.context, running, evolve(CPU, cpuset_cpus="0"))
    assert hypervisor.asked == [Resize(cpus=frozenset({0})), BEFORE]
    assert _quota(parent, running) == before


def test_what_cannot_be_undone_is_told_and_undone_later(
    manager: Manager, node: Node, running: str, parent: str
) -> None:
    """On the error that made it necessary; the other steps are undone at once."""
    before = _quota(parent, running)
    node.faults.once["undo"] = Unavailable("gone")
    manager.at["vm-resized:before-commit"] = Unavailable("disk full")
    with pytest.raises(Unavailable, match="disk full") as caught:
        resize_vm(manager.context, running, evolve(CPU, cpuset_cpus="0"))
    (note,) = caught.value.__notes__
    assert note.endswith("kept and tried again: resize-machine by plugin 'fake': gone")
    assert _quota(parent, running) == before
    until(lambda: manager.vm(running).resizing is None)


def test_a_guest_that_ends_meanwhile_is_not_resized(
    manager: Manager, hypervisor: Recorder, running: str
) -> None:
    """Its end stays on record as it was written."""
    hypervisor.on_resize = lambda vm_id: hypervisor.end(
        vm_id, VmExit(exit_code=0, reason="Completed")
    )
    with pytest.raises(FailedPrecondition, match="ended while it was resized"):
        resize_vm(manager.context, running, Resources(cpuset_cpus="0"))
    assert manager.vm(running).exit is not None
    assert manager.vm(running).resources == Resources()


def test_a_vm_that_was_not_started_is_defined_again(
    manager: Manager, hypervisor: Recorder, vm: str, parent: str
) -> None:
    """And starts with what was asked for last."""
    resize_vm(manager.context, vm, CPU)
    assert manager.vm(vm).resources == CPU
    assert hypervisor.defined[-1].vm.config.resources == CPU
    assert manager.vm(vm).machine == hypervisor.defined[-1]
    # The kubelet's retry of CreateContainer still finds the VM it made.
    assert manager.vm(vm).vm.config.resources == Resources()
    manager.start(vm)
    if not cgroups.unenforced(cgroups.find(parent, vm), CPU):
        assert _quota(parent, vm) == "50000"
    assert hypervisor.asked == []


@pytest.mark.parametrize("point", ["define", "store"])
def test_a_definition_that_fails_leaves_the_old_one(
    manager: Manager, hypervisor: Recorder, node: Node, vm: str, point: str
) -> None:
    old = hypervisor.defined[-1]
    if point == "define":
        node.faults.once["define"] = InvalidArgument("odd document")
    else:
        manager.at["vm-resized:before-commit"] = Unavailable("disk full")
    with pytest.raises((InvalidArgument, Unavailable)):
        resize_vm(manager.context, vm, CPU)
    assert hypervisor.defined[-1] == old
    assert manager.vm(vm).resources == Resources()
    assert manager.vm(vm).machine == old


def test_the_flavor_says_what_a_limit_means(
    manager: Manager, hypervisor: Recorder, running: str
) -> None:
    """This node's makes the same memory of every limit."""
    resize_vm(manager.context, running, Resources(memory_limit=7 * GIB))
    assert hypervisor.asked == [Resize(memory=GIB)]


def test_vcpus_that_a_guest_may_not_use_are_told_to_the_owner(
    manager: Manager, node: Node, running: str
) -> None:
    """Without KVM, as with this hypervisor, a Linux guest ignores those that come while it runs."""
    node.flavor = lambda vm: Flavor(
        vcpus=max(1, vm.resources.cpu_quota // 100_000), max_vcpus=3, guest_agent=False
    )
    record = manager.vm(running)
    assert record.machine is not None
    growing = evolve(record.machine, flavor=evolve(record.machine.flavor, max_vcpus=3))
    manager.store.put_vm(evolve(record, machine=growing))
    for quota in (100_000, 200_000):
        resize_vm(manager.context, running, Resources(cpu_quota=quota))
    notices = [event.reason for event in manager.told.events if event.kind is EventKind.VM_NOTICE]
    (notice,) = notices
    assert "was given 2 vCPUs while it runs, after 1: without KVM" in notice


def test_huge_pages_need_a_restart(manager: Manager, running: str) -> None:
    with pytest.raises(FailedPrecondition, match="huge pages"):
        resize_vm(manager.context, running, Resources(hugepage_limits={"2MB": 4 << 20}))


def test_nothing_is_promised_that_no_group_can_hold(manager: Manager, vm: str) -> None:
    """Values that are in force already are no promise, nor is the end of a limit."""
    pod_id = manager.run("bare")
    bare = manager.create(pod_id)
    resize_vm(manager.context, bare, CPU)
    manager.start(bare)
    for change in (Resources(cpu_quota=60_000), Resources(cpu_shares=100)):
        with pytest.raises(FailedPrecondition, match="nothing here can hold its CPU"):
            resize_vm(manager.context, bare, change)
    resize_vm(manager.context, bare, CPU)
    resize_vm(manager.context, bare, Resources(cpu_quota=-1, cpuset_cpus="0"))


def test_only_vms_that_can_run_are_resized(manager: Manager, vm: str) -> None:
    """Nothing to do is done for any that is known."""
    with pytest.raises(NotFound):
        resize_vm(manager.context, "x", Resources())
    manager.start(vm)
    manager.stop(vm)
    resize_vm(manager.context, vm, Resources())
    with pytest.raises(FailedPrecondition, match="is exited and cannot be resized"):
        resize_vm(manager.context, vm, CPU)


@pytest.mark.parametrize("started", [True, False])
def test_one_that_was_cut_short_under_an_earlier_release_is_put_back(
    managers: Managers, node: Node, hypervisor: Recorder, vm: str, parent: str, started: bool
) -> None:
    """Its record had all that was known of it, and the journal nothing."""
    change, held = evolve(CPU, cpuset_cpus="0"), dict[str, str]()
    machine = hypervisor.defined[-1]
    if started:
        managers.now.start(vm)
        groups = cgroups.find(parent, vm)
        if cgroups.unenforced(groups, CPU):
            pytest.skip("no writable control groups here")
        held |= cgroups.held(groups, change)
        cgroups.change_limits(groups, change)
    else:
        hypervisor.define(evolve(machine, withheld=1), None)
    with closing(sqlite3.connect(node.root / "db", isolation_level=None)) as connection:
        resizing = json.dumps({"change": asdict(change), "limits": held})
        connection.execute(
            "UPDATE vms SET version = 7, record = json_set(record, '$.resizing', json(?))",
            (resizing,),
        )
        connection.execute("PRAGMA user_version = 7")
    manager = managers.restart()
    assert manager.vm(vm).resizing is None
    assert manager.vm(vm).resources == Resources()
    assert not [row for row in manager.store.effects(vm) if row.kind.startswith("resize-")]
    if started:
        assert cgroups.held(cgroups.find(parent, vm), change) == held
        assert hypervisor.asked == [Resize(cpus=cpus.everywhere())]
    else:
        assert hypervisor.defined[-1] == machine


def test_what_has_ended_or_is_removed_is_not_put_back(
    manager: Manager, hypervisor: Recorder, node: Node, running: str
) -> None:
    """Its rows go with the others."""
    node.faults.always["undo"] = Unavailable("gone")
    manager.at["vm-resized:before-commit"] = Unavailable("disk full")
    with pytest.raises(Unavailable, match="disk full"):
        resize_vm(manager.context, running, evolve(CPU, cpuset_cpus="0"))
    assert [row.kind for row in manager.store.effects(running)][-1:] == ["resize-machine"]
    manager.remove(running)
    assert manager.store.effects(running) == []
