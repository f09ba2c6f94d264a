"""A guest and its emulator fit into the memory that a kubelet gives their pod."""

from collections.abc import Callable

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import IMAGE, Manager, Node
from virtlet.core.lifecycle import images, pods, vms
from virtlet.core.lifecycle.resize import resize_vm
from virtlet.errors import InvalidArgument
from virtlet.model.event import EventKind
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Resize
from virtlet.model.image import Credentials
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.resources import Resources
from virtlet.model.vm import VmConfig, VmMetadata

MIB = 1 << 20
NEED = 100 * MIB
GROUP = "/kubepods/pod1"

Create = Callable[..., str]


@pytest.fixture
def create(manager: Manager, node: Node) -> Create:
    """Make a pod and its VM; every emulator needs 100 MiB."""
    node.flavor = lambda vm: Flavor(
        memory=vm.resources.memory_limit or 1 << 30, max_memory=1 << 30, guest_agent=False
    )
    node.hypervisor.need = NEED

    def make(limit: int, overhead: int = 0, cgroup_parent: str = GROUP) -> str:
        config = PodConfig(
            metadata=PodMetadata(name="web", uid="uid", namespace="default"),
            log_directory=str(node.root / "logs"),
            cgroup_parent=cgroup_parent,
            overhead=Resources(memory_limit=overhead * MIB),
        )
        pod_id = pods.run_pod(manager.context, config, "")
        images.pull(manager.context, IMAGE, Credentials())
        asked = Resources(memory_limit=limit * MIB)
        vm = VmConfig(
            metadata=VmMetadata(name="guest"),
            image=IMAGE,
            log_path="guest/0.log",
            resources=asked,
        )
        return vms.create_vm(manager.context, pod_id, vm)

    return make


def _memory(node: Node, vm_id: str) -> int:
    """MiB of RAM of the machine that was defined last."""
    return node.hypervisor.machines[vm_id].flavor.memory // MIB


@pytest.mark.parametrize(
    ("limit", "overhead", "cgroup_parent", "memory"),
    [
        (256, 100, GROUP, 256),
        (256, 160, GROUP, 256),
        (256, 99, GROUP, 255),
        (256, 0, GROUP, 156),
        (228, 0, GROUP, 128),
        (32, 160, GROUP, 32),
        (256, 0, "", 256),
        (0, 0, GROUP, 1024),
    ],
)
def test_the_guest_gets_its_limit_or_what_the_emulator_leaves_of_it(
    create: Create, node: Node, limit: int, overhead: int, cgroup_parent: str, memory: int
) -> None:
    """Where the pod has no control group or no limit, nothing is taken."""
    assert _memory(node, create(limit, overhead, cgroup_parent)) == memory


@pytest.mark.parametrize(("limit", "overhead"), [(227, 0), (64, 50)])
def test_a_pod_that_cannot_hold_both_is_refused_with_what_to_write(
    create: Create, manager: Manager, node: Node, limit: int, overhead: int
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create(limit, overhead)
    said = str(caught.value)
    assert f"limit of {limit}Mi and the RuntimeClass's overhead of {overhead}Mi" in said
    assert "overhead: {podFixed: {memory: 100Mi}}" in said
    assert f"raise the limit to {228 - overhead}Mi" in said
    (pod_id,) = manager.store.pods
    assert list(manager.store.vms) == []
    assert node.disks == set()
    manager.remove_pod(pod_id)
    assert node.left == []


def test_the_owner_is_told_what_the_guest_does_not_get(create: Create, manager: Manager) -> None:
    vm_id = create(256, 40)
    manager.start(vm_id)
    manager.start(vm_id)
    (notice,) = [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    assert "has 196Mi of RAM, not the 256Mi" in notice.reason
    assert "overhead: {podFixed: {memory: 100Mi}}" in notice.reason


def test_a_guest_with_all_of_its_limit_is_told_nothing(create: Create, manager: Manager) -> None:
    manager.start(create(256, 100))
    assert [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE] == []


def test_a_resize_follows_the_same_rule(create: Create, manager: Manager, node: Node) -> None:
    """Before the start, and while the VM runs."""
    vm_id = create(256, 40)
    resize_vm(manager.context, vm_id, Resources(memory_limit=300 * MIB))
    assert _memory(node, vm_id) == 240
    with pytest.raises(InvalidArgument, match="do not hold|does not hold"):
        resize_vm(manager.context, vm_id, Resources(memory_limit=100 * MIB))
    manager.start(vm_id)
    resize_vm(manager.context, vm_id, Resources(memory_limit=400 * MIB))
    assert node.hypervisor.sizes[vm_id].memory == 340 * MIB
    with pytest.raises(InvalidArgument, match="does not hold"):
        resize_vm(manager.context, vm_id, Resources(memory_limit=100 * MIB))
    resources = manager.vm(vm_id).resources
    assert resources is not None
    assert resources.memory_limit == 400 * MIB


def test_a_vm_from_before_the_rule_keeps_its_memory_until_its_limit_changes(
    create: Create, managers: Managers, node: Node
) -> None:
    """A kubelet sends the memory limit with every change of another."""
    node.hypervisor.need = 0
    vm_id = create(256)
    managers.now.start(vm_id)
    node.hypervisor.need = NEED
    managers.restart()
    change = Resources(memory_limit=256 * MIB, cpuset_cpus="0")
    resize_vm(managers.now.context, vm_id, change)
    assert node.hypervisor.sizes[vm_id] == Resize(vcpus=1, memory=256 * MIB, cpus=frozenset({0}))
    resize_vm(managers.now.context, vm_id, evolve(change, memory_limit=300 * MIB))
    assert node.hypervisor.sizes[vm_id].memory == 200 * MIB
    resize_vm(managers.now.context, vm_id, change)
    assert node.hypervisor.sizes[vm_id].memory == 256 * MIB
