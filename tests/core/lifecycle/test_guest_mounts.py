"""Telling a pod's owner of shared directories that the guest has not mounted."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Manager, Node
from tests.polling import until
from virtlet.core.cri.lifecycle_calls import SandboxCalls
from virtlet.core.lifecycle import exits, guest_mounts
from virtlet.core.lifecycle.guest_mounts import Pace
from virtlet.core.store.records import VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import Unavailable
from virtlet.model.disk import Share
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import DomainState, Observation

SOON = Pace(pauses=(0.01,), patience=30.0)
PROC = "nodev\tproc\n\text4\n"
CACHE = Share(host_path=Path("/srv"), guest_path="/cache", tag="volume-0")
DATA = Share(host_path=Path("/srv"), guest_path="/data", tag="volume-1")


@pytest.fixture
def vm(manager: Manager) -> str:
    """A VM with two shared directories that runs."""
    vm_id = manager.create(manager.run())
    manager.start(vm_id)

    def share(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        machine = evolve(record.machine, volumes=(CACHE, DATA), agent_socket=Path("agent.sock"))
        return evolve(record, machine=machine)

    manager.store.change_vm(vm_id, share)
    return vm_id


def says(node: Node, *answers: str | Exception) -> None:
    """Have the guest answer so, the last one from then on."""
    left = list(answers)

    def answer() -> bytes:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now.encode()

    node.guest = answer


def notices(manager: Manager, vm: str, pace: Pace = SOON) -> Sequence[str]:
    """What is told until the guest is asked no more."""
    watching = guest_mounts.watch(manager.context, vm, pace)
    if watching is not None:
        watching.join(30)
        assert not watching.is_alive()
    return _told(manager)


def _told(manager: Manager) -> list[str]:
    return [e.reason for e in manager.told.events if e.kind is EventKind.VM_NOTICE]


def test_a_guest_that_has_all_mounted_is_nothing_to_tell_of(
    manager: Manager, node: Node, vm: str
) -> None:
    mounts = "volume-1 /x 9p rw 0 0\nvolume-0 /cache 9p rw 0 0\n"
    says(node, f"{PROC}\n/dev/vda / ext4 rw 0 0\n", f"up\n{PROC}nodev\t9p\n\n{mounts}")
    assert notices(manager, vm) == []


def test_what_the_guest_has_not_mounted_is_told_once_it_is_up(
    manager: Manager, node: Node, vm: str
) -> None:
    still_booting = f"{PROC}\n"
    says(node, Unavailable("boots"), still_booting, f"up\n{PROC}\nvolume-1 /x 9p rw 0 0\n")
    (told,) = notices(manager, vm)
    assert told.startswith("the guest has not mounted /cache (9p, tag volume-0): what it writes")
    assert "its kernel knows no 9p file system: use an image" in told
    assert "modules 9p and 9pnet_virtio" in told
    assert "or set the pod's annotation VirtletShareDriver: virtiofs; Debian's" in told


def test_a_guest_without_virtiofs_is_told_of_with_the_annotation_that_shares_over_9p(
    manager: Manager, node: Node, vm: str
) -> None:
    def over_virtiofs(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        volumes = tuple(evolve(share, driver="virtiofs") for share in (CACHE, DATA))
        return evolve(record, machine=evolve(record.machine, volumes=volumes))

    manager.store.change_vm(vm, over_virtiofs)
    says(node, f"up\n{PROC}\n")
    (told,) = notices(manager, vm)
    assert "its kernel knows no virtiofs file system: use an image" in told
    assert "or set the pod's annotation VirtletShareDriver: 9p;" in told


def test_a_kernel_that_knows_the_file_system_is_not_to_blame(
    manager: Manager, node: Node, vm: str
) -> None:
    says(node, f"up\n{PROC}nodev\t9p\n\nnonsense\n")
    (told,) = notices(manager, vm)
    assert "/cache (9p, tag volume-0), /data (9p, tag volume-1)" in told
    assert told.endswith("run /etc/cloud/mount-volumes.sh in the guest to see why")


def test_a_guest_that_never_says_it_is_up_is_told_of_in_the_end(
    manager: Manager, node: Node, vm: str
) -> None:
    says(node, f"{PROC}\n")
    assert len(notices(manager, vm, Pace(pauses=(0.05,), patience=5.0))) == 1


def test_a_guest_that_does_not_answer_is_nothing_to_tell_of(
    manager: Manager, node: Node, vm: str
) -> None:
    says(node, Unavailable("no agent"))
    assert notices(manager, vm, Pace(pauses=(0.05,), patience=0.3)) == []


def test_what_the_node_sees_opened_is_mounted_whatever_the_guest_says(
    manager: Manager, node: Node, vm: str
) -> None:
    """A guest that has all of it is not even asked."""
    asked: list[str] = []

    def answer() -> bytes:
        asked.append("")
        return f"up\n{PROC}\n".encode()

    node.guest = answer
    node.hypervisor.opened = {"volume-0": True, "volume-1": True}
    assert notices(manager, vm) == []
    assert asked == []


def test_a_guest_without_an_agent_is_told_of_by_what_the_node_sees(
    manager: Manager, node: Node, vm: str
) -> None:
    """Once it had its time; that it mounts the share after that is told as well."""

    def without_agent(record: VmRecord) -> VmRecord:
        assert record.machine is not None
        return evolve(record, machine=evolve(record.machine, agent_socket=None))

    manager.store.change_vm(vm, without_agent)
    node.hypervisor.opened = {"volume-0": True, "volume-1": False}
    started = time.time_ns() - 170 * 10**9
    manager.store.change_vm(vm, lambda record: evolve(record, started_at=started))
    watching = guest_mounts.watch(manager.context, vm, Pace(pauses=(0.01,), unheard=170.3))
    assert watching is not None
    (told,) = until(lambda: _told(manager), "a notice")
    start = "the guest has not mounted /data (9p, tag volume-1) 3 minutes after its start: what it"
    assert told.startswith(start)
    assert "no agent in the guest says why" in told
    assert manager.context.opened_shares[vm] == node.hypervisor.opened
    node.hypervisor.opened = {"volume-0": False, "volume-1": True}
    watching.join(30)
    assert not watching.is_alive()
    assert manager.context.opened_shares[vm] == {"volume-0": True, "volume-1": True}
    assert _told(manager) == [told, "the guest has mounted /data (9p, tag volume-1) now"]


def test_a_guest_that_boots_again_has_mounted_nothing_until_it_is_seen_to(
    manager: Manager, node: Node, vm: str
) -> None:
    """It is told of as after a start; who looked before the reboot looks no more."""
    says(node, f"up\n{PROC}\n")
    node.hypervisor.opened = {"volume-0": True, "volume-1": False}
    before = guest_mounts.watch(manager.context, vm, SOON)
    assert before is not None
    until(lambda: len(_told(manager)) == 1, "a notice")
    node.hypervisor.opened = {"volume-0": False, "volume-1": False}
    exits.on_change(
        manager.context, Observation(vm_id=vm, state=DomainState.RUNNING, rebooted=True)
    )
    before.join(30)
    assert not before.is_alive()
    assert vm not in manager.context.opened_shares
    watching = guest_mounts.watch(manager.context, vm, SOON, rebooted=True)
    assert watching is not None
    until(lambda: len(_told(manager)) == 2, "another")
    assert "/cache (9p, tag volume-0), /data (9p, tag volume-1)" in _told(manager)[1]
    assert manager.context.opened_shares[vm] == {"volume-0": False, "volume-1": False}
    node.hypervisor.opened = {"volume-0": True, "volume-1": True}
    watching.join(30)
    assert not watching.is_alive()


def test_the_pods_status_has_the_shares_of_its_vm(manager: Manager, vm: str) -> None:
    calls = SandboxCalls(manager.context)
    pod = manager.store.vms[vm].vm.pod.id
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)

    def shares() -> list[dict[str, object]]:
        reply = calls.status(request)
        assert isinstance(reply, bytes)
        info = cri.PodSandboxStatusResponse.FromString(reply).info["info"]
        return list(json.loads(info)["shares"])

    assert [share["mounted"] for share in shares()] == [None, None]
    manager.context.opened_shares[vm] = {"volume-0": True, "volume-1": False}
    about = {"container": vm, "driver": "9p"}
    assert shares() == [
        {**about, "guestPath": "/cache", "tag": "volume-0", "mounted": True},
        {**about, "guestPath": "/data", "tag": "volume-1", "mounted": False},
    ]
    manager.stop(vm)
    assert shares() == []


def test_nobody_asks_a_vm_that_has_ended(manager: Manager, node: Node, vm: str) -> None:
    says(node, f"up\n{PROC}\n")
    manager.stop(vm)
    assert notices(manager, vm) == []


def test_the_next_manager_asks_a_vm_that_was_started_a_moment_ago(
    managers: Managers, node: Node, vm: str
) -> None:
    says(node, f"up\n{PROC}\n")
    manager = managers.restart()
    assert len(notices(manager, vm)) == 1


def test_the_next_manager_looks_at_shares_of_a_vm_that_was_started_long_ago(
    managers: Managers, manager: Manager, node: Node, vm: str
) -> None:
    """For its status: the guest is not asked, and nothing told, until it mounts them after all."""
    asked: list[str] = []

    def answer() -> bytes:
        asked.append("")
        return b""

    node.guest = answer
    node.hypervisor.opened = {"volume-0": True, "volume-1": False}
    long_ago = time.time_ns() - 3600 * 10**9
    manager.store.change_vm(vm, lambda record: evolve(record, started_at=long_ago))
    manager = managers.restart()
    assert until(lambda: manager.context.opened_shares.get(vm), "a look") == node.hypervisor.opened
    node.hypervisor.opened = {"volume-0": True, "volume-1": True}
    assert notices(manager, vm) == []
    assert manager.context.opened_shares[vm] == node.hypervisor.opened
    assert asked == []
