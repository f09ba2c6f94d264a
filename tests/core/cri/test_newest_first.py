"""Pods whose VM was started more than once, as a kubelet with evented PLEG sees them."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.cri.serving import Serving
from tests.fakes.manager import Manager, Node
from virtlet.cli.client import Client
from virtlet.core.cri.event_calls import ContainerEvents
from virtlet.core.cri.lifecycle_calls import SandboxCalls
from virtlet.core.events import EventTeller
from virtlet.cri import api_pb2 as cri
from virtlet.model.event import Event, EventKind

ATTEMPTS = 3


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(Node(tmp_path))
    yield manager
    manager.close()


@pytest.fixture
def pod(manager: Manager) -> str:
    """A pod whose VM ended and was started again; its clock stood still for two of the attempts."""
    pod_id = manager.run()
    for attempt in range(ATTEMPTS):
        vm_id = manager.create(pod_id, attempt)
        manager.start(vm_id)
        if attempt < ATTEMPTS - 1:
            manager.stop(vm_id)
        record = manager.vm(vm_id)
        at = 5 if attempt else 4
        manager.store.put_vm(evolve(record, vm=evolve(record.vm, created_at=at)))
    return pod_id


@pytest.fixture
def client(manager: Manager, tmp_path: Path) -> Iterator[Client]:
    context = manager.context
    teller = context.events = EventTeller(context.hooks, context.profiles)
    teller.start()
    serving = Serving(
        tmp_path / "s.sock",
        lambda loop: [*SandboxCalls(context).calls(), *ContainerEvents(context, loop).calls()],
    )
    with Client(tmp_path / "s.sock", timeout=20) as client:
        yield client
    serving.stop()
    teller.stop()


def _attempts(statuses: Iterable[cri.ContainerStatus]) -> list[tuple[int, int]]:
    return [(status.metadata.attempt, status.state) for status in statuses]


NEWEST_FIRST = [
    (2, cri.CONTAINER_RUNNING),
    (1, cri.CONTAINER_EXITED),
    (0, cri.CONTAINER_EXITED),
]


def test_a_pods_status_lists_the_newest_attempt_first(client: Client, pod: str) -> None:
    reply = client.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert _attempts(reply.containers_statuses) == NEWEST_FIRST


def test_an_event_lists_the_newest_attempt_first(
    client: Client, manager: Manager, pod: str
) -> None:
    stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
    replies: list[cri.ContainerEventResponse] = []
    reading = threading.Thread(target=lambda: replies.append(next(stream)))
    reading.start()
    # A subscription is there once an event arrives.
    while reading.is_alive():
        manager.context.events.tell(
            Event(kind=EventKind.VM_STARTED, subject=pod, pod_id=pod, at=1), ""
        )
        reading.join(0.1)
    stream.cancel()
    assert _attempts(replies[0].containers_statuses) == NEWEST_FIRST
