"""A kubelet asks again every second for a resize that was refused."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.cri.serving import Serving
from tests.core.lifecycle.test_checkpoints import with_overlay
from tests.fakes.manager import Manager, Node
from virtlet.cli.client import CallFailed, Client
from virtlet.core.cri.lifecycle_calls import ResizeCalls
from virtlet.core.lifecycle.refusals import AGAIN
from virtlet.core.store.records import VmPhase
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition, Unavailable
from virtlet.model.vm import HIBERNATE

MIB = 1 << 20
SECONDS = 8
"""How often it asks here."""


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A running VM, a server, and a client that sends what a kubelet sends."""

    def __init__(self, root: Path) -> None:
        self.node = Node(root)
        self.clock = Clock()
        self.manager = Manager(self.node)
        self.vm = self.manager.create(self.manager.run())
        self.manager.start(self.vm)
        resizes = ResizeCalls(self.manager.context, self.clock)
        self.serving = Serving(root / "cri.sock", lambda loop: resizes.calls())
        self.client = Client(root / "cri.sock").__enter__()

    def update(self, mib: int) -> None:
        """The memory limit changes."""
        resources = cri.LinuxContainerResources(
            cpu_period=100_000,
            memory_limit_in_bytes=mib * MIB,
            memory_swap_limit_in_bytes=mib * MIB,
            oom_score_adj=0,
            hugepage_limits=[cri.HugepageLimit(page_size=size) for size in ("2MB", "1GB")],
        )
        request = cri.UpdateContainerResourcesRequest(container_id=self.vm, linux=resources)
        self.client.call("UpdateContainerResources", request)

    def refused(self, mib: int) -> str:
        """What it is told."""
        with pytest.raises(CallFailed) as caught:
            self.update(mib)
        return caught.value.details

    @property
    def tries(self) -> int:
        """How often the hypervisor was asked."""
        return self.node.faults.passed.count("resize")

    def close(self) -> None:
        self.client.__exit__(None, None, None)
        self.serving.stop()
        self.manager.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """The VM."""
    made = Running(tmp_path)
    yield made
    made.close()


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]


def test_a_refused_resize_is_answered_without_work_and_logged_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running.node.faults.always["resize"] = FailedPrecondition("it cannot do with 700 MiB")
    points = running.manager.points
    told = {running.refused(800) for _ in range(SECONDS)}
    assert told == {"it cannot do with 700 MiB"}
    assert running.tries == 1
    assert _lines(caplog) == ["call refused"]
    assert points.count("vm-resizing:committed") == 1

    # By then the guest may have other figures to tell, and it is the same refusal.
    running.clock.now += AGAIN
    running.node.faults.always["resize"] = FailedPrecondition("it cannot do with 699 MiB")
    assert running.refused(800) == running.refused(800) == "it cannot do with 699 MiB"
    assert running.tries == 2
    assert _lines(caplog) == ["call refused"]

    del running.node.faults.always["resize"]
    running.clock.now += AGAIN
    running.update(800)
    assert running.manager.vm(running.vm).resources is not None


def test_another_resize_and_another_reason_are_looked_at_and_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.node.faults.always["resize"] = FailedPrecondition("it cannot do with 700 MiB")
    running.refused(800)
    running.refused(801)
    assert running.tries == 2
    running.clock.now += AGAIN
    running.node.faults.always["resize"] = FailedPrecondition("it has no balloon")
    assert running.refused(801) == "it has no balloon"
    assert _lines(caplog) == ["call refused"] * 2


def test_a_hypervisor_that_is_away_is_asked_each_time_and_logged_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.node.faults.once["resize"] = Unavailable("libvirt is away")
    running.refused(800)
    running.update(800)
    assert _lines(caplog)[0] == "call refused"
    assert running.tries >= 2


def test_a_vm_that_ended_meanwhile_is_looked_at(running: Running) -> None:
    running.node.faults.always["resize"] = FailedPrecondition("it cannot do with 700 MiB")
    running.refused(800)
    running.manager.stop(running.vm)
    assert "is exited" in running.refused(800)


def _hibernate(
    running: Running, value: str, linux: cri.LinuxContainerResources | None = None
) -> None:
    request = cri.UpdateContainerResourcesRequest(
        container_id=running.vm, annotations={HIBERNATE: value}, linux=linux
    )
    running.client.call("UpdateContainerResources", request)


def test_a_vm_is_hibernated_and_resumed_by_an_annotation_of_the_call(running: Running) -> None:
    """The hypervisor is asked, and no resize is tried."""
    running.manager.store.change_vm(running.vm, with_overlay)
    running.client.hibernate(running.vm, on=True)
    assert running.manager.vm(running.vm).phase is VmPhase.HIBERNATED
    with pytest.raises(CallFailed, match="virtlet resume"):
        running.update(800)
    running.client.hibernate(running.vm, on=False)
    assert running.manager.vm(running.vm).phase is VmPhase.RUNNING
    assert running.tries == 0


def test_an_annotation_that_says_neither_or_comes_with_a_resize_is_refused(
    running: Running,
) -> None:
    with pytest.raises(CallFailed, match="VirtletHibernate is true or false"):
        _hibernate(running, "yes")
    with pytest.raises(CallFailed, match="without other resources"):
        _hibernate(running, "true", linux=cri.LinuxContainerResources(cpu_shares=2))
    assert running.manager.vm(running.vm).phase is VmPhase.RUNNING
    assert "hibernate" not in running.node.faults.passed
