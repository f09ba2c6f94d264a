"""Streams: container events, and lists in portions."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import Pod, PodFactory
from tests.e2e.subscriber import CREATED, DELETED, STARTED, STOPPED, Subscriber
from tests.polling import until
from virtlet.cli.client import Client
from virtlet.cli.playground import Playground
from virtlet.core.metrics.sampler import AT_MOST_EVERY
from virtlet.cri import api_pb2 as cri


def test_every_change_is_told_once_in_order_to_every_subscriber_with_statuses(
    node: Playground, new_pod: PodFactory
) -> None:
    subscribers = [Subscriber(node), Subscriber(node)]
    pod = new_pod().up()
    pod.client.stop(pod.vm, 0)
    pod.down()
    expected = [
        (pod.id, CREATED),
        (pod.id, STARTED),
        (pod.vm, CREATED),
        (pod.vm, STARTED),
        (pod.vm, STOPPED),
        (pod.id, STOPPED),
        (pod.vm, DELETED),
        (pod.id, DELETED),
    ]
    for subscriber in subscribers:
        until(lambda s=subscriber: len(s.of(pod.id, pod.vm)) >= 8, "all events", 20)  # type: ignore[misc]
        assert subscriber.of(pod.id, pod.vm) == expected
        for event in subscriber.events:
            if event.container_id in (pod.id, pod.vm):
                assert event.pod_sandbox_status.metadata.name == pod.pod.metadata.name
        gone = subscriber.events[-1].pod_sandbox_status
        assert gone.state == cri.SANDBOX_NOTREADY
        started = next(
            e
            for e in subscriber.events
            if e.container_id == pod.vm and e.container_event_type == STARTED
        )
        assert started.pod_sandbox_status.id == pod.id
        assert started.containers_statuses[0].state == cri.CONTAINER_RUNNING
        assert started.created_at > 0
        subscriber.close()


def _power_off(pod: Pod) -> None:
    pod.leave("poweroff -f")


def _kill(pod: Pod) -> None:
    os.kill(pod.emulator, signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "reason"), [(_power_off, "Completed"), (_kill, "Error")], ids=["power-off", "killed"]
)
def test_a_vm_that_ends_by_itself_is_told_of_once_with_how_it_ended(
    node: Playground, new_pod: PodFactory, end: Callable[[Pod], None], reason: str
) -> None:
    pod = new_pod().up()
    pod.wait_for_console("login:")
    subscriber = Subscriber(node)
    end(pod)
    until(lambda: bool(subscriber.of(pod.vm)), "the end of the VM", 10)
    pod.down()
    until(lambda: (pod.id, DELETED) in subscriber.of(pod.id), "the removal of the pod")
    subscriber.close()
    told = [(pod.vm, STOPPED), (pod.id, STOPPED), (pod.vm, DELETED), (pod.id, DELETED)]
    assert subscriber.of(pod.id, pod.vm) == told
    (status,) = subscriber.events_of(pod.vm)[0].containers_statuses
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, reason)


STREAMED = {
    "StreamPodSandboxes": ("pod_sandboxes", "ListPodSandbox", "items"),
    "StreamContainers": ("containers", "ListContainers", "containers"),
    "StreamContainerStats": ("container_stats", "ListContainerStats", "stats"),
    "StreamPodSandboxStats": ("pod_sandbox_stats", "ListPodSandboxStats", "stats"),
    "StreamPodSandboxMetrics": ("pod_sandbox_metrics", "ListPodSandboxMetrics", "pod_metrics"),
    "StreamImages": ("images", "ListImages", "images"),
}
"""Streamed list and its field, with the unary one and its field."""


def test_every_list_that_the_definition_streams_is_compared() -> None:
    methods = [
        method.name
        for service in cri.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    ]
    assert set(methods) == {*STREAMED, "GetContainerEvents"}


def test_the_streamed_lists_hold_what_the_unary_lists_hold(
    node: Playground, new_pod: PodFactory
) -> None:
    new_pod().run().create()
    pod = new_pod().up()
    time.sleep(AT_MOST_EVERY)  # until the new ones are worth a look
    for name, (field, unary, unary_field) in STREAMED.items():
        replies = _call(pod.client, name, 10)
        streamed = [_without_figures(item) for reply in replies for item in getattr(reply, field)]
        listed = getattr(_call(pod.client, unary, 10), unary_field)
        assert streamed == [_without_figures(item) for item in listed], name
        assert streamed, name


def test_a_streamed_list_follows_its_filter(node: Playground, new_pod: PodFactory) -> None:
    pods = [new_pod().up() for _ in range(2)]
    wanted = cri.StreamContainerStatsRequest(
        filter=cri.ContainerStatsFilter(pod_sandbox_id=pods[1].id)
    )
    replies = pods[0].client.runtime.StreamContainerStats(wanted, timeout=10)
    items = [item.attributes.id for reply in replies for item in reply.container_stats]
    assert items == [pods[1].vm]


def _call(client: Client, name: str, timeout: float) -> Any:
    for service, stub in (("RuntimeService", client.runtime), ("ImageService", client.images)):
        methods = cri.DESCRIPTOR.services_by_name[service].methods_by_name
        if name in methods:
            request = getattr(cri, methods[name].input_type.name)()
            return getattr(stub, name)(request, timeout=timeout)
    raise AssertionError(f"the definition has no call {name}")


def _without_figures(message: Any) -> Any:
    """A message whose numbers, which move between two calls, are all 1."""
    still = type(message)()
    still.CopyFrom(message)
    for field, value in still.ListFields():
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(still, field.name, 1)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            items = [value] if isinstance(value, Message) else list(value)
            stills = [_without_figures(item) for item in items]
            if isinstance(value, Message):
                value.CopyFrom(stills[0])
            else:
                del value[:]
                value.extend(stills)
    return still


def test_a_manager_stops_at_once_while_somebody_listens_to_events(node: Playground) -> None:
    with node.client() as client, grpc.insecure_channel(f"unix:{node.socket}") as channel:
        stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        # A subscription is there once the server has the request.
        threading.Event().wait(0.3)
        started = time.monotonic()
        status = node.stop()
        took = time.monotonic() - started
        node.start()
        with pytest.raises(grpc.RpcError, match="the manager is stopping") as caught:
            next(stream)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert status == 0
    assert took < 8, "calls under way are waited for for ten seconds"
