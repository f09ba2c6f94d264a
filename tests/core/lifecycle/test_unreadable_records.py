"""A plugin that cannot read what it kept itself, as after an upgrade of its own."""

import pytest

from tests.fakes.manager import Manager, Node
from virtlet.core.store.records import VmPhase
from virtlet.errors import UndoIncomplete

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
