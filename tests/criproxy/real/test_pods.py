"""Pods of two real runtimes side by side through one proxy."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real import websocket
from tests.criproxy.real.conftest import World
from tests.criproxy.real.events import LIFE, listening
from tests.criproxy.real.sides import Pod, Side
from tests.polling import until
from virtlet.cri import api_pb2 as cri

MakePod = Callable[..., Pod]


def test_a_pod_starts_logs_answers_and_goes(
    client: Client, side: Side, connect: Callable[[Path | str], Client]
) -> None:
    pod = Pod(client, side).start()
    pod.wait_for_log("stdout F hello")
    status = pod.status()
    assert status.state == cri.CONTAINER_RUNNING
    assert status.image.image.endswith(side.image)
    sandbox = client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert sandbox.status.network.ip.startswith("10.89.")
    assert pod.exec("echo", "from inside").stdout == b"from inside\n"
    assert pod.exec("false").exit_code == 1
    direct = connect(side.socket)
    assert pod.id in direct.pods()
    assert client.containers()[pod.container].pod_sandbox_id == pod.id
    client.runtime.StopContainer(cri.StopContainerRequest(container_id=pod.container, timeout=1))
    assert pod.status().state == cri.CONTAINER_EXITED
    pod.remove()
    assert pod.id not in client.pods() | direct.pods()
    assert pod.container not in client.containers()


def test_pods_of_both_run_at_one_time(client: Client, world: World, make_pod: MakePod) -> None:
    pods = [make_pod(side).start() for side in world.sides for _ in range(2)]
    assert client.pods() == {pod.id for pod in pods}
    assert {c.state for c in client.containers().values()} == {cri.CONTAINER_RUNNING}
    for pod in pods:
        pod.wait_for_log("hello")


def test_statistics_come_from_both(client: Client, world: World, make_pod: MakePod) -> None:
    pods = [make_pod(side).start() for side in world.sides]
    listed = client.runtime.ListContainerStats(cri.ListContainerStatsRequest()).stats
    assert {s.attributes.id for s in listed} == {pod.container for pod in pods}
    for pod in pods:
        request = cri.ContainerStatsRequest(container_id=pod.container)
        stats = client.runtime.ContainerStats(request).stats
        assert stats.cpu.usage_core_nano_seconds.value > 0
    filesystems = client.image.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    assert len(filesystems) == 2


def test_exec_carries_input_output_and_the_exit_code(side: Side, make_pod: MakePod) -> None:
    pod = make_pod(side).start()
    request = cri.ExecRequest(
        container_id=pod.container,
        cmd=["sh", "-c", "head -n 1 | tr a-z A-Z; echo bad >&2; exit 3"],
        stdin=True,
        stdout=True,
        stderr=True,
    )
    stream = websocket.Stream(side.pid, pod.client.runtime.Exec(request).url)
    stream.send(websocket.STDIN, b"typed\n")
    received = stream.to_end()
    assert received[websocket.STDOUT] == b"TYPED\n"
    assert received[websocket.STDERR] == b"bad\n"
    cause = json.loads(received[websocket.ERROR])["details"]["causes"][0]
    assert cause == {"reason": "ExitCode", "message": "3"}
    stream.close()


def test_attach_reaches_the_containers_terminal(side: Side, make_pod: MakePod) -> None:
    pod = make_pod(side, "while read line; do echo said $line; done", tty=True, stdin=True).start()
    request = cri.AttachRequest(container_id=pod.container, stdin=True, stdout=True, tty=True)
    stream = websocket.Stream(side.pid, pod.client.runtime.Attach(request).url)
    stream.send(websocket.STDIN, b"it\n")
    stream.until(websocket.STDOUT, b"said it")
    stream.close()
    pod.wait_for_log("said it")


def test_port_forward_reaches_a_port_of_the_pod(side: Side, make_pod: MakePod) -> None:
    serve = "(while true; do echo from the pod | nc -l -p 80; done) &"
    # Port 80 in state 10: somebody listens.
    listening = "until cat /proc/net/tcp* | grep -q ':0050 .* 0A '; do sleep 0.1; done"
    pod = make_pod(side, f"{serve} {listening}; echo ready; wait").start()
    pod.wait_for_log("ready")
    request = cri.PortForwardRequest(pod_sandbox_id=pod.id, port=[80])
    answer = pod.client.runtime.PortForward(request)
    stream = websocket.Stream(side.pid, answer.url + "?port=80")
    assert stream.until(0, b"from the pod\n").startswith(struct.pack("<H", 80))
    stream.close()


def test_events_of_both_come_in_one_stream(client: Client, world: World) -> None:
    with listening(world.proxy.listen) as heard:
        pods = [Pod(client, side).start() for side in world.sides]
        for pod in pods:
            pod.remove()
        wanted = {(pod.container, kind) for pod in pods for kind in LIFE}
        until(lambda: wanted <= set(heard.events), timeout=10)


def test_an_image_of_each_is_known_by_its_own_name(client: Client, world: World) -> None:
    tags = {t for i in client.image.ListImages(cri.ListImagesRequest()).images for t in i.repo_tags}
    for side in world.sides:
        assert side.image in tags
        status = cri.ImageStatusRequest(image=cri.ImageSpec(image=side.image))
        assert side.image in client.image.ImageStatus(status).image.repo_tags


def test_a_pull_that_cannot_work_fails_with_the_runtimes_reason(client: Client, side: Side) -> None:
    image = side.image.replace("busybox:1", "none:2").replace("registry.test", "127.0.0.1:1")
    with pytest.raises(grpc.RpcError) as caught:
        client.image.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=image)), timeout=20)
    assert "127.0.0.1:1/none:2" in (caught.value.details() or "")


def test_resources_are_changed_where_the_container_is(
    client: Client, side: Side, make_pod: MakePod
) -> None:
    pod = make_pod(side).start()
    client.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(
            container_id=pod.container, linux=cri.LinuxContainerResources(cpu_shares=512)
        )
    )
    assert pod.status().resources.linux.cpu_shares == 512


def test_a_rotated_log_is_written_again(side: Side, make_pod: MakePod) -> None:
    pod = make_pod(side, "while true; do echo tick; sleep 0.1; done").start()
    pod.wait_for_log("tick")
    path = Path(pod.config.log_directory, "main", "0.log")
    path.rename(path.with_suffix(".1"))
    request: Any = cri.ReopenContainerLogRequest(container_id=pod.container)
    pod.client.runtime.ReopenContainerLog(request)
    pod.wait_for_log("tick")
