"""A resize that is cut short leaves a VM as its record says, wherever the crash falls."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Killed, Manager, Node
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.core.lifecycle import pods, resize
from virtlet.core.lifecycle.resize import keep_putting_back, put_back, resize_vm
from virtlet.core.store.records import VmPhase
from virtlet.errors import FailedPrecondition, Unavailable
from virtlet.host import cgroups, cpus
from virtlet.model.flavor import Flavor
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.resources import Resources
from virtlet.model.vm import VmConfig, VmExit

GIB = 1 << 30
CHANGE = Resources(
    cpu_quota=50_000,
    cpu_period=100_000,
    cpu_shares=512,
    memory_limit=GIB // 2,
    oom_score_adj=300,
    cpuset_cpus="0",
)
STEPS = ("resize-limits", "resize-oom-score", "resize-machine")


def _flavor(vm: VmConfig) -> Flavor:
    memory = vm.resources.memory_limit or GIB
    return Flavor(memory=memory, max_memory=4 * GIB, guest_agent=False)


class World:
    """A VM in a pod with a control group, on a node of its own."""

    def __init__(self, root: Path, parent: str) -> None:
        root.mkdir()
        self.node = Node(root, flavor=_flavor)
        self.managers = Managers(self.node)
        self.first = self.now
        self.parent = parent
        config = PodConfig(
            metadata=PodMetadata(name="web", uid="uid", namespace="default", attempt=0),
            cgroup_parent=parent,
        )
        self.pod = pods.run_pod(self.now.context, config, "")
        self.vm = self.now.create(self.pod)

    @property
    def now(self) -> Manager:
        """The manager."""
        return self.managers.now

    def start(self) -> None:
        """Have the VM run, with a group that was never limited."""
        self.now.start(self.vm)
        if cgroups.unenforced(cgroups.find(self.parent, self.vm), Resources(cpu_quota=1)):
            pytest.skip("no writable control groups here")

    def resize(self, change: Resources = CHANGE) -> None:
        """UpdateContainerResources."""
        resize_vm(self.now.context, self.vm, change)

    def killed(self, what: Callable[[], None]) -> bool:
        """Do something; returns whether the manager was killed meanwhile."""
        try:
            what()
        except Killed:
            return True
        except Unavailable:
            pass
        return False

    def dies(self, point: str) -> None:
        """A resize kills the manager."""
        self.now.at[point] = Killed()
        assert self.killed(self.resize)

    def limits(self) -> dict[str, str]:
        """What the VM's groups hold."""
        return dict(cgroups.held(cgroups.find(self.parent, self.vm), CHANGE))

    @property
    def settled(self) -> bool:
        """Whether nothing is in doubt."""
        return self.now.vm(self.vm).resizing is None

    def wait(self) -> None:
        """Until nothing is."""
        until(lambda: self.settled)

    def agrees(self) -> Resources:
        """The resources on record; the machine has them."""
        record = self.now.vm(self.vm)
        resources = record.resources
        assert resources is not None
        assert self.settled
        size = self.node.hypervisor.sizes[self.vm]
        assert size.memory == (resources.memory_limit or GIB)
        cpuset = resources.cpuset_cpus
        assert size.cpus == (cpus.cpuset(cpuset) if cpuset else cpus.everywhere())
        return resources


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[[], World]]:
    """Makes nodes with a VM."""
    made: list[World] = []
    numbers = itertools.count()
    with pod_cgroup() as parent:

        def make() -> World:
            made.append(World(tmp_path / str(next(numbers)), parent))
            return made[-1]

        yield make
        for world in made:
            _end(world)


def _end(world: World) -> None:
    world.node.faults.always.clear()
    world.node.hypervisor.away = ""
    if world.pod in world.now.store.pods:
        world.now.remove_pod(world.pod)
        world.now.close()


def _fails(world: World) -> None:
    world.now.at["vm-resized:before-commit"] = Unavailable("disk full")


def _succeeds(world: World) -> None:
    pass


@pytest.mark.parametrize("outcome", [_succeeds, _fails])
def test_a_crash_at_any_point_of_a_resize_leaves_what_is_on_record(
    new_world: Callable[[], World], outcome: Callable[[World], None]
) -> None:
    """Also while one that failed is undone; the kubelet's retry then succeeds."""

    def resize_of(point: str) -> list[str]:
        world = new_world()
        world.start()
        before = world.limits()
        del world.now.points[:]
        outcome(world)
        if point:
            world.now.at[point] = Killed()
        assert world.killed(world.resize) == bool(point)
        if point:
            world.managers.restart()
        resources = world.agrees()
        assert resources in (Resources(), CHANGE)
        assert (world.limits() == before) == (resources == Resources()), point
        world.resize()
        assert world.agrees() == CHANGE
        points = world.first.points
        _end(world)
        return list(dict.fromkeys(points))

    points = resize_of("")
    points = points[: points.index("vm-resized:committed") + 1]
    moments = ("applied", "reverted") if outcome is _fails else ("applied",)
    assert {f"{step}:{moment}" for step in STEPS for moment in moments} <= set(points)
    assert {"vm-resizing:before-commit", "vm-resizing:committed"} <= set(points)
    assert ("vm-resize-undone:committed" in points) == (outcome is _fails)
    if outcome is _fails:
        points.remove("vm-resized:before-commit")
        points = points[: points.index("vm-resize-undone:committed") + 1]
    for point in points:
        resize_of(point)


def test_a_crash_at_any_point_while_a_resize_is_put_back_does_no_harm(
    new_world: Callable[[], World],
) -> None:
    """The next manager does it again."""

    def put_back_of(point: str) -> list[str]:
        world = new_world()
        world.start()
        before = world.limits()
        world.dies("resize-machine:applied")
        world.now.close()
        # One that does nothing by itself, unlike one that recovers.
        successor = world.managers.now = Manager(world.node)
        if point:
            successor.at[point] = Killed()
        assert world.killed(lambda: put_back(successor.context, world.vm)) == bool(point)
        world.managers.restart()
        assert world.agrees() == Resources(), point
        assert world.limits() == before, point
        _end(world)
        return list(dict.fromkeys(successor.points))

    points = put_back_of("")
    assert {f"{step}:applied" for step in STEPS} | {"vm-resized:committed"} <= set(points)
    for point in points:
        put_back_of(point)


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("outcome", [_succeeds, _fails])
def test_a_vm_that_was_not_started_starts_as_its_record_says(
    new_world: Callable[[], World], outcome: Callable[[World], None], away: bool
) -> None:
    """Wherever a crash fell, even if the hypervisor is away until just before its start."""

    def resize_of(point: str) -> list[str]:
        world = new_world()
        del world.now.points[:]
        outcome(world)
        if point:
            world.now.at[point] = Killed()
        assert world.killed(world.resize) == bool(point)
        points = list(dict.fromkeys(world.now.points))
        world.node.hypervisor.away = "no answer" if away else ""
        world.managers.restart()
        world.node.hypervisor.away = ""
        world.start()
        kept = point not in ("", "vm-resized:committed") or outcome is _fails
        assert world.agrees() == (Resources() if kept else CHANGE), point
        _end(world)
        return points

    points = resize_of("")
    assert {"vm-resizing:committed", "resize-definition:applied"} <= set(points)
    assert ("resize-definition:reverted" in points) == (outcome is _fails)
    if outcome is _fails:
        points.remove("vm-resized:before-commit")
    for point in points:
        resize_of(point)


def test_a_crash_while_a_definition_is_put_back_does_no_harm(
    new_world: Callable[[], World],
) -> None:
    """The next manager does it again."""

    def put_back_of(point: str) -> list[str]:
        world = new_world()
        world.dies("resize-definition:applied")
        world.now.close()
        successor = world.managers.now = Manager(world.node)
        if point:
            successor.at[point] = Killed()
        assert world.killed(lambda: put_back(successor.context, world.vm)) == bool(point)
        world.managers.restart()
        world.start()
        assert world.agrees() == Resources(), point
        _end(world)
        return list(dict.fromkeys(successor.points))

    points = put_back_of("")
    assert "vm-resize-undone:committed" in points
    for point in points:
        put_back_of(point)


def test_a_hypervisor_that_is_away_at_the_start_is_caught_up_with(
    new_world: Callable[[], World],
) -> None:
    """As soon as it is back, with nobody asking."""
    world = new_world()
    world.start()
    before = world.limits()
    world.dies("resize-machine:applied")
    world.node.hypervisor.away = "no answer"
    started = time.monotonic()
    world.managers.restart()
    assert time.monotonic() - started < resize.PAUSES[-1]
    assert not world.settled
    world.node.hypervisor.away = ""
    world.wait()
    assert world.agrees() == Resources()
    assert world.limits() == before


def test_a_manager_that_ends_tries_no_more(new_world: Callable[[], World]) -> None:
    """What is left is its successor's to put back."""
    world = new_world()
    world.start()
    world.dies("resize-machine:applied")
    world.node.hypervisor.away = "no answer"
    trying = keep_putting_back(world.now.context, world.vm)
    trying.join(0.1)
    assert trying.is_alive()
    world.now.close()
    trying.join(10)
    assert not trying.is_alive()
    world.node.hypervisor.away = ""
    world.managers.restart()
    assert world.agrees() == Resources()


def test_a_vm_that_goes_is_not_put_back_any_more(new_world: Callable[[], World]) -> None:
    """Nobody waits for its guest, nor is it asked for ever."""
    for end in (Manager.stop, Manager.remove):
        world = new_world()
        world.start()
        world.dies("resize-machine:applied")
        world.node.faults.always["resize"] = FailedPrecondition("the guest uses it")
        trying = keep_putting_back(world.now.context, world.vm)
        end(world.now, world.vm)
        trying.join(10)
        assert not trying.is_alive()
        record = world.now.store.vms.get(world.vm)
        assert record is None or record.resizing is None
        _end(world)


def test_a_guest_that_keeps_its_memory_is_asked_again_or_gets_what_the_kubelet_asks_for(
    new_world: Callable[[], World],
) -> None:
    """A retry, or another size, does not wait for what was before."""
    for change in (None, CHANGE, Resources(memory_limit=2 * GIB, cpuset_cpus="0")):
        world = new_world()
        world.start()
        before = world.limits()
        world.dies("resize-machine:applied")
        world.node.faults.always["resize"] = FailedPrecondition("the guest uses it")
        world.managers.restart()
        assert not world.settled
        if change is not None:
            with pytest.raises(FailedPrecondition, match="the guest uses it"):
                world.resize(change)
            assert not world.settled
        del world.node.faults.always["resize"]
        if change is None:
            world.wait()
            assert world.agrees() == Resources()
        else:
            world.resize(change)
            assert world.agrees() == change
        # Of what the next one left unset, what was before is in force again.
        assert (world.limits() == before) == (change is None)
        shares = {f: v for f, v in before.items() if f.endswith(("cpu.weight", "cpu.shares"))}
        kept = {file: world.limits()[file] for file in shares} == shares
        assert kept == (change is not CHANGE)
        _end(world)


def test_what_a_hypervisor_did_before_it_was_lost_is_undone_later(
    new_world: Callable[[], World],
) -> None:
    """Without a crash, too."""
    world = new_world()
    world.start()
    before = world.limits()
    world.node.faults.once["resized"] = Unavailable("lost on the way")
    with pytest.raises(Unavailable, match="lost on the way"):
        world.resize()
    world.wait()
    assert world.node.faults.passed.count("resized") == 2
    assert world.agrees() == Resources()
    assert world.limits() == before


def test_a_vm_that_ended_meanwhile_has_nothing_to_put_back(new_world: Callable[[], World]) -> None:
    """Its next attempt has its own limits."""
    world = new_world()
    world.start()
    world.dies("resize-machine:applied")
    world.node.hypervisor.callback = None
    world.node.hypervisor.end(world.vm, VmExit(exit_code=0, reason="Completed"))
    world.managers.restart()
    assert world.settled
    assert world.now.vm(world.vm).phase is VmPhase.EXITED
