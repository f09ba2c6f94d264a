"""A plugin that does not return: it is named, and holds up nothing but its own pod."""

import logging
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.manager import Manager, Node
from tests.polling import until
from virtlet.core.lifecycle.context import KeyedLocks
from virtlet.core.store.records import VmPhase
from virtlet.errors import Unavailable, UndoIncomplete
from virtlet.model.flavor import Flavor
from virtlet.model.vm import VmConfig

PATIENCE = 0.3


class Stuck:
    """A plugin that waits for something before it chooses a flavor."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def flavor(self, vm: VmConfig) -> Flavor:
        self.entered.set()
        assert self.go_on.wait(60)
        return Flavor(guest_agent=False)


@pytest.fixture
def stuck(node: Node, manager: Manager) -> Iterator[Stuck]:
    """The node's plugin hangs once a VM is made."""
    stuck = Stuck()
    manager.context.hooks.watch.patience = PATIENCE
    node.flavor = stuck.flavor
    yield stuck
    stuck.go_on.set()


@pytest.fixture
def pod(manager: Manager, stuck: Stuck) -> Iterator[str]:
    """A pod whose VM is being made."""
    pod_id = manager.run("stuck")
    making = threading.Thread(target=manager.create, args=(pod_id,))
    making.start()
    assert stuck.entered.wait(10)
    yield pod_id
    stuck.go_on.set()
    making.join(10)


def test_who_asks_for_the_pods_end_is_told_which_plugin_hangs_and_what_to_do(
    manager: Manager, pod: str
) -> None:
    for ask in (manager.stop_pod, manager.remove_pod):
        with pytest.raises(Unavailable) as caught:
            ask(pod)
        message = str(caught.value)
        assert "plugin 'fake' has not returned from virtlet_flavor" in message
        assert "a restart of the manager ends the hook" in message


def test_other_pods_go_on(manager: Manager, node: Node, pod: str) -> None:
    other = manager.run("other")
    node.flavor = lambda vm: Flavor(guest_agent=False)
    manager.start(manager.create(other))
    manager.remove_pod(other)
    assert set(manager.store.pods) == {pod}


def test_the_pod_can_be_removed_once_the_plugin_has_returned(
    manager: Manager, node: Node, stuck: Stuck, pod: str
) -> None:
    with pytest.raises(Unavailable):
        manager.stop_pod(pod)
    stuck.go_on.set()
    until(lambda: bool(manager.store.vms_of(pod)), "the VM", 10)
    manager.remove_pod(pod)
    assert node.left == []


def test_the_log_names_plugin_hook_and_pod(
    manager: Manager, pod: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    watch = manager.context.hooks.watch
    watch.start()
    until(lambda: bool(caplog.records), "a line of the log", 10)
    watch.stop()
    (record,) = caplog.records
    said = record.__dict__
    assert record.getMessage() == "a plugin has not returned"
    assert (said["plugin"], said["hook"]) == ("fake", "virtlet_flavor")
    assert (said["pod_name"], said["pod"]) == ("default/stuck", pod)


def test_a_plugin_that_takes_its_time_is_waited_for(
    manager: Manager, node: Node, stuck: Stuck, pod: str
) -> None:
    manager.context.hooks.watch.patience = 60
    removing = threading.Thread(target=manager.remove_pod, args=(pod,))
    removing.start()
    removing.join(1)
    assert removing.is_alive()
    stuck.go_on.set()
    removing.join(20)
    assert node.left == []


def test_an_inverse_that_hangs_at_start_up_holds_up_its_own_pod_alone(
    manager: Manager, node: Node
) -> None:
    pod, other = manager.run("web"), manager.run("other")
    vm = manager.create(other)
    manager.start(vm)
    node.faults.once["teardown_network"] = Unavailable("busy")
    with pytest.raises(UndoIncomplete):
        manager.stop_pod(pod)
    go_on = node.faults.stuck["teardown_network"] = threading.Event()
    successor = manager.restarted(patience=PATIENCE)
    successor.context.hooks.watch.patience = PATIENCE
    try:
        assert successor.vm(vm).phase is VmPhase.RUNNING
        successor.stop(vm)
        with pytest.raises(Unavailable, match="'fake' has not returned from virtlet_teardown_net"):
            successor.remove_pod(pod)
    finally:
        go_on.set()
    until(lambda: pod not in node.networks, "the end of what hung", 10)
    successor.remove_pod(pod)
    assert pod not in successor.store.pods
    successor.close()


def test_a_hypervisor_that_hangs_is_named_with_the_vm(
    manager: Manager, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    vm = manager.create(manager.run())
    watch = manager.context.hooks.watch
    watch.patience = PATIENCE
    go_on = node.faults.stuck["start"] = threading.Event()
    starting = threading.Thread(target=manager.start, args=(vm,))
    watch.start()
    starting.start()
    try:
        until(
            lambda: any(
                getattr(r, "vm", "") == vm and getattr(r, "hook", "") == "start"
                for r in caplog.records
            ),
            "a line that names what hangs",
            10,
        )
    finally:
        go_on.set()
        starting.join(10)
        watch.stop()


def test_one_key_is_held_by_one_thread_and_another_key_is_free() -> None:
    locks = KeyedLocks()
    order: list[str] = []

    def work(key: str) -> None:
        with locks(key):
            order.append(key)

    with locks("a"):
        same, other = (threading.Thread(target=work, args=(key,)) for key in "ab")
        same.start()
        other.start()
        other.join(5)
        assert order == ["b"]
    same.join(5)
    assert order == ["b", "a"]


def test_the_thread_that_holds_a_key_may_take_it_again() -> None:
    locks = KeyedLocks()
    with locks("a"), locks("a"):
        pass
    with locks("a"):
        pass
