"""Pods up and down, with plugins that fail, also on what they kept themselves."""

import threading

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Manager, Node
from virtlet.core.store.records import PodPhase, VmPhase
from virtlet.errors import AlreadyExists, PluginError, Unavailable, UndoIncomplete
from virtlet.model.event import EventKind
from virtlet.model.pod import DnsConfig


def test_a_pod_whose_network_fails_leaves_nothing(manager: Manager, node: Node) -> None:
    node.faults.once["setup_network"] = Unavailable("no network today")
    with pytest.raises(Unavailable, match="no network today"):
        manager.run()
    assert node.left == []
    assert not manager.store.pods
    assert manager.told.events == []


def test_a_network_that_is_not_served_in_the_end_leaves_nothing(
    manager: Manager, node: Node
) -> None:
    node.faults.once["serve_network"] = Unavailable("nobody answers")
    with pytest.raises(Unavailable, match="nobody answers"):
        manager.run()
    assert node.left == []


def test_a_network_that_cannot_be_adjusted_so_leaves_nothing(manager: Manager, node: Node) -> None:
    node.adjust = lambda network: evolve(network, details="mine")
    with pytest.raises(PluginError, match="hook virtlet_adjust_network: changed details, which is"):
        manager.run()
    assert node.left == []


def test_pod_and_vm_have_the_adjusted_network_and_its_plugin_undoes_its_own(
    manager: Manager, node: Node
) -> None:
    dns = DnsConfig(servers=("10.0.0.53",))
    node.adjust = lambda network: evolve(network, dns=dns)
    pod = manager.run()
    vm = manager.create(pod)
    network = manager.pod(pod).network
    assert network is not None
    assert network.dns == manager.vm(vm).vm.network.dns == dns
    assert node.served == {pod}
    manager.remove_pod(pod)
    assert node.undone_by == [evolve(network, dns=DnsConfig())]


def test_a_pod_keeps_the_flavor_that_it_began_with(manager: Manager, node: Node) -> None:
    """Also over a restart of the manager; what is said later is for other pods."""
    node.pod_flavor = {"vcpus": 2}
    pod = manager.run()
    node.pod_flavor = {"vcpus": 4}
    assert manager.pod(pod).pod.profile.flavor == {"vcpus": 2}
    again = manager.vm(manager.create(pod)).vm.pod
    assert again.profile.flavor == {"vcpus": 2}
    assert manager.run() == pod


def test_a_plugin_that_raises_midway_is_named_and_undone(manager: Manager, node: Node) -> None:
    node.faults.once["setup_network"] = KeyError("secret")
    with pytest.raises(PluginError, match="plugin 'fake', hook virtlet_setup_network") as caught:
        manager.run()
    assert "secret" not in str(caught.value)
    assert node.left == []


def test_a_pod_that_can_neither_come_up_nor_be_undone_is_shown_not_ready_until_it_is_removed(
    manager: Manager, node: Node
) -> None:
    node.faults.once["setup_network"] = Unavailable("no network today")
    node.faults.always["teardown_network"] = Unavailable("nor tomorrow")
    with pytest.raises(Unavailable, match="no network today") as caught:
        manager.run()
    assert "nor tomorrow" in caught.value.__notes__[0]
    (pod,) = manager.store.pods.values()
    assert pod.visible
    assert pod.phase is PodPhase.NOT_READY
    with pytest.raises(UndoIncomplete, match="nor tomorrow"):
        manager.remove_pod(pod.pod.id)
    node.faults.always.clear()
    manager.remove_pod(pod.pod.id)
    assert node.left == []


def test_a_retry_of_a_pod_that_never_came_up_cleans_up_first_and_starts_again(
    manager: Manager, node: Node
) -> None:
    node.faults.once["setup_network"] = Unavailable("no network today")
    node.faults.once["teardown_network"] = Unavailable("not undone either")
    with pytest.raises(Unavailable, match="no network today"):
        manager.run()
    pod_id = manager.run()
    assert set(manager.store.pods) == {pod_id}
    assert node.networks == {pod_id}


def test_a_stopped_pod_is_not_run_again_under_its_name(manager: Manager) -> None:
    manager.stop_pod(manager.run())
    with pytest.raises(AlreadyExists, match="was stopped"):
        manager.run()
    assert manager.run(attempt=1)


def test_retries_of_one_pod_at_a_time_make_one_pod(manager: Manager, node: Node) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(manager.run())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 8
    assert len(set(made)) == 1
    assert node.networks == set(made)


def test_a_stop_whose_teardown_fails_says_so_and_the_next_one_finishes_it(
    manager: Manager, node: Node
) -> None:
    pod_id = manager.run()
    node.faults.once["teardown_network"] = Unavailable("later")
    with pytest.raises(UndoIncomplete, match="network by plugin 'fake': later"):
        manager.stop_pod(pod_id)
    assert manager.pod(pod_id).phase is PodPhase.NOT_READY
    assert node.networks == {pod_id}
    manager.stop_pod(pod_id)
    assert node.networks == set()


def test_a_removed_pod_takes_its_running_vm_with_it_in_order(manager: Manager, node: Node) -> None:
    pod_id = manager.run()
    vm_id = manager.create(pod_id)
    manager.start(vm_id)
    manager.remove_pod(pod_id)
    assert node.left == []
    kinds = [event.kind for event in manager.told.events if event.subject in (pod_id, vm_id)]
    assert kinds == [
        EventKind.POD_CREATED,
        EventKind.VM_CREATED,
        EventKind.VM_STARTED,
        EventKind.POD_STOPPED,
        EventKind.VM_STOPPED,
        EventKind.VM_REMOVED,
        EventKind.POD_REMOVED,
    ]


def test_a_pod_that_could_not_be_written_as_ready_is_undone(manager: Manager, node: Node) -> None:
    manager.at["pod-ready:before-commit"] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        manager.run()
    assert node.left == []
    assert not manager.store.pods


def test_a_pod_left_half_removed_is_removed_at_the_next_start(
    managers: Managers, node: Node
) -> None:
    pod_id = managers.now.run()
    node.faults.once["teardown_network"] = Unavailable("later")
    with pytest.raises(UndoIncomplete):
        managers.now.remove_pod(pod_id)
    assert managers.restart().pod(pod_id).phase is PodPhase.NOT_READY
    assert node.networks == set()


DEED = "teardown_network"


@pytest.fixture
def pod(manager: Manager, node: Node) -> str:
    """A pod whose network's plugin fails on its own record, whose text is not for everybody."""
    pod = manager.run("old")
    node.faults.always[DEED] = KeyError("hunter2")
    return pod


def test_the_plugin_is_named_with_its_hook_and_the_ways_out(manager: Manager, pod: str) -> None:
    for ask in (manager.stop_pod, manager.remove_pod):
        with pytest.raises(UndoIncomplete) as caught:
            ask(pod)
        message = str(caught.value)
        assert "plugin 'fake', hook virtlet_teardown_network: raised KeyError (" in message
        assert "mend the plugin or uninstall it, name it in the setting forgottenPlugins" in message
        assert "hunter2" not in message


def test_other_pods_go_on_and_the_removal_is_tried_again(
    manager: Manager, node: Node, pod: str
) -> None:
    with pytest.raises(UndoIncomplete):
        manager.stop_pod(pod)
    error = node.faults.always.pop(DEED)
    other = manager.run("other")
    vm = manager.create(other)
    manager.start(vm)
    node.faults.always[DEED] = error
    successor = manager.restarted()
    assert successor.vm(vm).phase is VmPhase.RUNNING
    with pytest.raises(UndoIncomplete):
        successor.remove_pod(pod)
    assert pod in successor.store.pods
    del node.faults.always[DEED]
    successor.remove_pod(other)
    successor.remove_pod(pod)
    assert node.left == []
    successor.close()
