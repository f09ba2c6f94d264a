"""A hypervisor that is not libvirt, beside the built-in one on the same manager."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.e2e.crash_points import CrashPoints
from tests.polling import until
from virtlet.cli.client import CallFailed, NoRuntime
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

T = TypeVar("T")
POINTS = [
    f"{effect}:{place}"
    for effect in ("domain", "running")
    for place in ("intended", "applied", "before-revert", "reverted")
]
"""Where the manager dies: before and after what the hypervisor does."""


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> CrashPoints:
    return CrashPoints(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def qemu_node(example_plugins: Path, points: CrashPoints) -> Iterator[Playground]:
    """A node with a handler of the example hypervisor; its manager may be killed."""
    handler = {"plugins": ["example_hypervisor"], "without": ["libvirt_qemu", "domain_xml"]}
    with Playground(
        {"tiny": TINY},
        subnet="10.131.0.0/16",
        settings={"handlers": {"plain": handler}},
        environment={"PYTHONPATH": str(example_plugins), **points.environment},
    ) as playground:
        yield playground


def _pod(node: Playground, handler: str = "plain") -> Pod:
    return Pod(node, node.client(), make_manifest(node, handler=handler))


def _end(pod: Pod) -> cri.ContainerStatus:
    """The status once the VM has ended."""
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM", 30)
    return pod.status


def _left(node: Playground) -> list[str]:
    """What pods have left, that which the example keeps included."""
    records = node.data_dir / "plugins" / "example_hypervisor"
    return [*node.settled_leftovers(), *map(str, records.iterdir())]


def test_a_vm_of_it_lives_beside_one_of_the_built_in_hypervisor_and_through_a_crash(
    qemu_node: Playground,
) -> None:
    theirs, ours = _pod(qemu_node, ""), _pod(qemu_node)
    theirs, ours = theirs.up(), ours.up()
    emulator = ours.emulator
    assert "-no-shutdown" in ours.command_line
    for pod in (theirs, ours):
        assert pod.manifest.pod.metadata.name in pod.wait_for_answer()
    ours.wait_for_console("login:")
    assert "SeaBIOS" in ours.console()
    name = ours.manifest.pod.metadata.name
    assert ours.exec("hostname").stdout.strip() == name
    stats = ours.client.call("ContainerStats", cri.ContainerStatsRequest(container_id=ours.vm))
    assert stats.stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.stats.memory.working_set_bytes.value > 0

    qemu_node.kill()
    qemu_node.start()
    assert ours.emulator == emulator
    assert ours.status.state == theirs.status.state == cri.CONTAINER_RUNNING
    assert ours.exec("hostname").stdout.strip() == name
    ours.client.stop(ours.vm, 60)
    status = ours.status
    assert (status.exit_code, status.reason) == (0, "Completed")
    for pod in (theirs, ours):
        pod.down()
    assert _left(qemu_node) == []


def test_an_emulator_that_is_killed_is_told_as_that_and_the_next_attempt_runs(
    qemu_node: Playground,
) -> None:
    pod = _pod(qemu_node).up()
    os.kill(pod.emulator, signal.SIGKILL)
    status = _end(pod)
    assert (status.exit_code, status.reason) == (137, "Error")
    assert status.message == "the emulator died under the running guest"
    again = pod.up(attempt=1)
    assert again.status.state == cri.CONTAINER_RUNNING
    pod.down()
    assert _left(qemu_node) == []


@pytest.mark.parametrize("point", POINTS)
def test_the_manager_dies_beside_an_effect_of_the_hypervisor_and_nothing_is_left(
    qemu_node: Playground, points: CrashPoints, point: str
) -> None:
    first = qemu_node.process
    points.die_at(point)
    pod = _insist(qemu_node, _pod(qemu_node).run)
    pod = _insist(qemu_node, pod.create)
    _insist(qemu_node, lambda: pod.client.start(pod.vm))
    assert pod.status.state == cri.CONTAINER_RUNNING
    assert Path(f"/proc/{pod.emulator}").exists()
    for step in (pod.client.stop_pod, pod.client.remove_pod):
        _insist(qemu_node, lambda step=step: step(pod.id))  # type: ignore[misc]
    points.live()
    assert qemu_node.process is not first
    assert _left(qemu_node) == []


def _insist(node: Playground, call: Callable[[], T]) -> T:
    """A call, and once more when the manager dies of it."""
    try:
        return call()
    except (CallFailed, NoRuntime):
        assert node.process is not None
        node.process.wait(5)
        node.start()
        return call()
