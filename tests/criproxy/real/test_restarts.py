"""Real runtimes and the proxy killed and started again under load."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.criproxy.fakes.proxy import Client
from tests.criproxy.load import Load
from tests.criproxy.real.conftest import World
from tests.criproxy.real.sides import Pod, Side
from tests.polling import until
from virtlet.cri import api_pb2 as cri

MakePod = Callable[..., Pod]


def test_a_killed_runtimes_pods_run_on_stay_listed_and_obey_again(
    client: Client, world: World, side: Side, make_pod: MakePod
) -> None:
    other = next(s for s in world.sides if s is not side)
    pod, bystander = make_pod(side, "while true; do date; sleep 0.2; done"), make_pod(other)
    for each in (pod, bystander):
        each.start()
    with Load(world.proxy.listen, _ids(pod, bystander)).running() as load:
        load.more()
        side.kill()
        with pytest.raises(grpc.RpcError) as caught:
            wait_until_away(pod)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert side.name in (caught.value.details() or "")
        load.more()
        assert bystander.exec("echo", "still here").stdout == b"still here\n"
        side.start()
        until(lambda: answers(pod))
        load.more()
    assert load.wrong == []
    assert load.errors == []
    assert pod.status().state == cri.CONTAINER_RUNNING
    before = pod.log
    until(lambda: pod.log != before, timeout=10)


def _ids(*pods: Pod) -> dict[str, str]:
    return {pod.id: pod.container for pod in pods}


def wait_until_away(pod: Pod) -> None:
    """Call until it fails, which it does with the first call after the connection broke."""
    until(lambda: not pod.status(), "an error", 10)


def answers(pod: Pod) -> bool:
    """Whether the container's runtime answers."""
    try:
        pod.status()
    except grpc.RpcError:
        return False
    return True


def test_a_pod_that_ends_while_its_runtime_is_away_is_told_of_afterwards(
    world: World, side: Side, make_pod: MakePod, connect: Callable[[Path | str], Client]
) -> None:
    pod = make_pod(side, "sleep 2").start()
    stream = connect(world.proxy.listen).runtime.GetContainerEvents(cri.GetEventsRequest())
    stopped = threading.Event()

    def collect() -> None:
        try:
            for event in stream:
                if (event.container_id, event.container_event_type) == (
                    pod.container,
                    cri.CONTAINER_STOPPED_EVENT,
                ):
                    stopped.set()
        except grpc.RpcError:
            return

    thread = threading.Thread(target=collect)
    thread.start()
    time.sleep(0.5)
    side.kill()
    time.sleep(2.5)
    assert not stopped.is_set()
    side.start()
    assert stopped.wait(20)
    stream.cancel()
    thread.join(5)
    assert pod.status().state == cri.CONTAINER_EXITED


def test_a_killed_proxy_comes_back_and_every_pod_is_reached(
    client: Client, world: World, make_pod: MakePod
) -> None:
    pods = [make_pod(side).start() for side in world.sides]
    with Load(world.proxy.listen, _ids(*pods)).running() as load:
        load.more()
        world.proxy.end(signal.SIGKILL)
        world.proxy.start()
        load.more()
    assert load.wrong == []
    assert all(error.startswith("StatusCode.UNAVAILABLE") for error in load.errors)
    for pod in pods:
        until(lambda pod=pod: answers(pod), timeout=10)  # type: ignore[misc]
        assert pod.exec("echo", "here").stdout == b"here\n"


def test_a_proxy_started_while_a_runtime_is_away_still_lists_its_pods(
    client: Client, world: World, make_pod: MakePod
) -> None:
    second = world.sides[1]
    pods = [make_pod(side).start() for side in world.sides]
    client.pods()
    time.sleep(1)
    second.kill()
    world.proxy.end(signal.SIGTERM)
    world.proxy.start()
    until(lambda: answers(pods[0]), timeout=10)
    assert client.pods() == {pod.id for pod in pods}
    with pytest.raises(grpc.RpcError) as caught:
        pods[1].status()
    assert second.name in (caught.value.details() or "")
    second.start()
    until(lambda: answers(pods[1]))
