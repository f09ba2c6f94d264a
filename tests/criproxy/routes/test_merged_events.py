"""The events of all runtimes in one stream."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

CREATED, STARTED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT
STOPPED, DELETED = cri.CONTAINER_STOPPED_EVENT, cri.CONTAINER_DELETED_EVENT


class Subscriber:
    """Collects events in a thread."""

    def __init__(self, client: Client) -> None:
        self.stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        self._queue: queue.Queue[Any] = queue.Queue()
        self.end: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.stream:
                self._queue.put(event)
        except grpc.RpcError as error:
            self.end = error

    def next(self, seconds: float = 15.0) -> Any:
        return self._queue.get(timeout=seconds)

    def until(self, container: str, kind: int) -> list[tuple[str, int]]:
        """The events up to this one."""
        seen = []
        while True:
            event = self.next()
            seen.append((event.container_id, event.container_event_type))
            if seen[-1] == (container, kind):
                return seen

    def stop(self) -> None:
        self.stream.cancel()
        self._thread.join(5)


@pytest.fixture
def subscriber(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> Iterator[Subscriber]:
    subscriber = Subscriber(client)
    until(lambda: bool(containerd.subscribers and virtlet.subscribers))
    yield subscriber
    subscriber.stop()


def test_events_of_all_come_in_one_stream(
    subscriber: Subscriber, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    containerd.event("a", STARTED)
    first = subscriber.next()
    virtlet.event("b", STOPPED)
    second = subscriber.next()
    assert (first.container_id, first.container_event_type) == ("a", STARTED)
    assert (second.container_id, second.container_event_type) == ("b", STOPPED)


def test_image_names_in_events_have_their_prefix(
    client: Client, subscriber: Subscriber, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    client.create(pod, image=f"{VM}/cirros")
    virtlet.event("x", STARTED, pod)
    assert subscriber.next().containers_statuses[0].image.image == f"{VM}/cirros"


def test_a_subscriber_that_leaves_is_unsubscribed_everywhere(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    subscriber = Subscriber(client)
    until(lambda: bool(containerd.subscribers and virtlet.subscribers))
    subscriber.stop()
    until(lambda: not containerd.subscribers and not virtlet.subscribers)


def test_events_go_on_after_a_runtime_was_away_and_the_missed_ones_are_told(
    client: Client,
    proxy: RunningProxy,
    subscriber: Subscriber,
    virtlet: FakeRuntime,
    containerd: FakeRuntime,
) -> None:
    pod = client.run_pod(target=VM)
    virtlet.event(pod, STARTED, pod)
    exits, goes = client.create(pod, name="exits"), client.create(pod, name="goes")
    for container in (exits, goes):
        client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
        virtlet.event(container, CREATED, pod)
        virtlet.event(container, STARTED, pod)
        subscriber.until(container, STARTED)
    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    virtlet.containers[exits].state = cri.CONTAINER_EXITED
    del virtlet.containers[goes]
    containerd.event("meanwhile", STARTED)
    assert subscriber.next().container_id == "meanwhile"
    virtlet.start()
    told: dict[str, list[int]] = {}
    for _ in range(3):
        event = subscriber.next()
        told.setdefault(event.container_id, []).append(event.container_event_type)
        assert event.pod_sandbox_status.id == pod
    assert told == {exits: [STOPPED], goes: [STOPPED, DELETED]}
    until(lambda: bool(virtlet.subscribers))
    virtlet.event(exits, DELETED, pod)
    assert subscriber.next().container_event_type == DELETED


def test_a_runtime_without_events_is_told_from_its_lists(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    virtlet.missing.add("GetContainerEvents")
    subscriber = Subscriber(client)
    until(lambda: bool(containerd.subscribers))
    pod = client.run_pod(target=VM)
    container = client.create(pod, image=f"{VM}/cirros")
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    seen = subscriber.until(container, STARTED)
    assert (pod, CREATED) in seen
    assert (container, CREATED) in seen
    client.runtime.StopContainer(cri.StopContainerRequest(container_id=container))
    subscriber.until(container, STOPPED)
    subscriber.stop()


def test_a_runtime_without_events_that_fails_to_list_ends_no_stream(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    virtlet.missing.add("GetContainerEvents")
    pod = client.run_pod(target=VM)
    subscriber = Subscriber(client)
    container = client.create(pod)
    subscriber.until(container, CREATED)
    failed = threading.Event()

    def fail(request: Any, context: Any) -> Any:
        failed.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "busy")

    virtlet.instead["ListContainers"] = fail
    assert failed.wait(10)
    containerd.event("meanwhile", STARTED)
    assert subscriber.next().container_id == "meanwhile"
    virtlet.containers[container].state = cri.CONTAINER_RUNNING
    virtlet.instead.clear()
    subscriber.until(container, STARTED)
    virtlet.stop()
    virtlet.containers[container].state = cri.CONTAINER_EXITED
    virtlet.start()
    subscriber.until(container, STOPPED)
    subscriber.stop()


def test_events_missed_are_told_also_when_the_runtime_goes_again_before_they_are(
    client: Client, proxy: RunningProxy, subscriber: Subscriber, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    for kind in (CREATED, STARTED):
        virtlet.event(container, kind, pod)
    subscriber.until(container, STARTED)
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    virtlet.containers[container].state = cri.CONTAINER_EXITED
    asked = threading.Event()

    def busy(request: Any, context: Any) -> Any:
        asked.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "going again")

    # What is asked for the events' sake once the lists have come.
    virtlet.instead["PodSandboxStatus"] = busy
    virtlet.start()
    assert asked.wait(10)
    virtlet.stop()
    virtlet.instead.clear()
    virtlet.start()
    assert (container, STOPPED) in subscriber.until(container, STOPPED)


def test_a_primary_without_events_makes_clients_list(
    client: Client, containerd: FakeRuntime
) -> None:
    containerd.missing.add("GetContainerEvents")
    subscriber = Subscriber(client)
    until(lambda: subscriber.end is not None)
    assert subscriber.end is not None
    assert subscriber.end.code() == grpc.StatusCode.UNIMPLEMENTED


def test_what_was_there_before_is_not_told(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    client.create(client.run_pod(target=VM))
    subscriber = Subscriber(client)
    until(lambda: bool(containerd.subscribers and virtlet.subscribers))
    virtlet.event("new", STARTED)
    assert subscriber.next().container_id == "new"
    subscriber.stop()


def test_back_pressure_holds_every_runtime_back_and_loses_none(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
    runtimes = {"c": containerd, "v": virtlet}
    until(lambda: bool(containerd.subscribers and virtlet.subscribers))
    for number in range(60):
        for letter, runtime in runtimes.items():
            # Together far more than may wait unread for a client.
            runtime.event(f"{letter}{number}-" + "x" * 60_000, cri.CONTAINER_CREATED_EVENT)
    time.sleep(1)
    told: dict[str, list[str]] = {"c": [], "v": []}
    while sum(map(len, told.values())) < 120:
        some_id = next(stream).container_id.partition("-")[0]
        told[some_id[0]].append(some_id)
    stream.cancel()
    assert told == {letter: [f"{letter}{n}" for n in range(60)] for letter in runtimes}
