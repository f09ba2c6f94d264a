"""Every read-only answer of containerd is the same direct and through the proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from attrs import frozen
from google.protobuf.message import Message

from criproxy import image_names
from criproxy.methods import BY_NAME
from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.conftest import SECOND, World
from tests.criproxy.real.sides import Pod
from virtlet.cri import api_pb2 as cri

#: Numbers that differ between two calls of the very same client.
_VOLATILE = frozenset(
    (
        "timestamp",
        "usage_core_nano_seconds",
        "usage_nano_cores",
        "working_set_bytes",
        "available_bytes",
        "usage_bytes",
        "rss_bytes",
        "page_faults",
        "major_page_faults",
        "used_bytes",
        "inodes_used",
        "rx_bytes",
        "tx_bytes",
        "psi",
        "io",
    )
)


@frozen
class Doors:
    """The ways to containerd: direct, through a proxy of its own, through one with two."""

    direct: Client
    second: Client
    """Of the other containerd, direct."""
    alone: Client
    mixed: Client
    pod: Pod
    """Of the first; the second has one too."""


@pytest.fixture(scope="module")
def doors(world: World) -> Iterator[Doors]:
    """The ways, and a pod."""
    primary = world.sides[0]
    listen = world.node.dir / "one.sock"
    with (
        ProxyProcess(listen, "--connect", str(primary.socket), "--state-dir", ""),
        Client(primary.socket) as direct,
        Client(world.sides[1].socket) as second,
        Client(listen) as alone,
        Client(world.proxy.listen) as mixed,
    ):
        pods = [Pod(mixed, side).start() for side in world.sides]
        yield Doors(direct, second, alone, mixed, pods[0])
        for pod in pods:
            pod.remove()


def calm(message: Message) -> Message:
    """Without volatile numbers, and with items in one order: containerd's own is random."""
    for field, value in list(message.ListFields()):
        if field.name in _VOLATILE:
            message.ClearField(field.name)
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        elif field.is_repeated:
            items = sorted(
                (calm(item) for item in value),
                key=lambda item: item.SerializeToString(deterministic=True),
            )
            del value[:]
            value.extend(items)
        else:
            calm(value)
    return message


def ask(client: Client, name: str, request: Any) -> object:
    """An answer, or its status."""
    method = BY_NAME[name]
    call = client.raw(method.path)
    try:
        answer = call(request.SerializeToString(), timeout=20)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return calm(method.response.FromString(answer))


def of_container(name: str, **more: Any) -> Callable[[Pod], Any]:
    return lambda pod: getattr(cri, f"{name}Request")(container_id=pod.container, **more)


def of_sandbox(name: str, **more: Any) -> Callable[[Pod], Any]:
    return lambda pod: getattr(cri, f"{name}Request")(pod_sandbox_id=pod.id, **more)


#: What goes to one runtime also on a mixed node.
ROUTED: dict[str, tuple[str, Callable[[Pod], Any]]] = {
    "version": ("Version", lambda pod: cri.VersionRequest()),
    "runtime config": ("RuntimeConfig", lambda pod: cri.RuntimeConfigRequest()),
    "sandbox status": ("PodSandboxStatus", of_sandbox("PodSandboxStatus")),
    "verbose sandbox status": ("PodSandboxStatus", of_sandbox("PodSandboxStatus", verbose=True)),
    "sandbox status by a short id": (
        "PodSandboxStatus",
        lambda pod: cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id[:13]),
    ),
    "container status by a short id": (
        "ContainerStatus",
        lambda pod: cri.ContainerStatusRequest(container_id=pod.container[:13]),
    ),
    "container status": ("ContainerStatus", of_container("ContainerStatus")),
    "verbose container status": ("ContainerStatus", of_container("ContainerStatus", verbose=True)),
    "container stats": ("ContainerStats", of_container("ContainerStats")),
    "sandbox stats": ("PodSandboxStats", of_sandbox("PodSandboxStats")),
    "no such container": (
        "ContainerStatus",
        lambda pod: cri.ContainerStatusRequest(container_id="none"),
    ),
    "no such sandbox": (
        "PodSandboxStatus",
        lambda pod: cri.PodSandboxStatusRequest(pod_sandbox_id="none"),
    ),
    "no such container's stats": (
        "ContainerStats",
        lambda pod: cri.ContainerStatsRequest(container_id="none"),
    ),
    "an empty id": ("ContainerStatus", lambda pod: cri.ContainerStatusRequest()),
    "pods by a short id": (
        "ListPodSandbox",
        lambda pod: cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id=pod.id[:13])),
    ),
    "containers of a pod by its short id": (
        "ListContainers",
        lambda pod: cri.ListContainersRequest(
            filter=cri.ContainerFilter(pod_sandbox_id=pod.id[:13])
        ),
    ),
    "pods by id": (
        "ListPodSandbox",
        lambda pod: cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id=pod.id)),
    ),
    "containers of a pod": (
        "ListContainers",
        lambda pod: cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id)),
    ),
    "stats by id": (
        "ListContainerStats",
        lambda pod: cri.ListContainerStatsRequest(
            filter=cri.ContainerStatsFilter(id=pod.container)
        ),
    ),
    "sandbox stats by id": (
        "ListPodSandboxStats",
        lambda pod: cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(id=pod.id)),
    ),
    "an image": (
        "ImageStatus",
        lambda pod: cri.ImageStatusRequest(image=cri.ImageSpec(image=pod.side.image)),
    ),
    "a verbose image": (
        "ImageStatus",
        lambda pod: cri.ImageStatusRequest(image=cri.ImageSpec(image=pod.side.image), verbose=True),
    ),
    "no such image": (
        "ImageStatus",
        lambda pod: cri.ImageStatusRequest(image=cri.ImageSpec(image="registry.test/none")),
    ),
    "an image's name that is none": (
        "ImageStatus",
        lambda pod: cri.ImageStatusRequest(image=cri.ImageSpec(image="NO NAME")),
    ),
    "images by name": (
        "ListImages",
        lambda pod: cri.ListImagesRequest(
            filter=cri.ImageFilter(image=cri.ImageSpec(image=pod.side.image))
        ),
    ),
    "metric descriptors": (
        "ListMetricDescriptors",
        lambda pod: cri.ListMetricDescriptorsRequest(),
    ),
    "sandbox metrics": ("ListPodSandboxMetrics", lambda pod: cri.ListPodSandboxMetricsRequest()),
}

#: What is merged on a mixed node, and is the runtime's own where it is the only one.
MERGED: dict[str, tuple[str, Callable[[Pod], Any]]] = {
    "status": ("Status", lambda pod: cri.StatusRequest()),
    "verbose status": ("Status", lambda pod: cri.StatusRequest(verbose=True)),
    "pods": ("ListPodSandbox", lambda pod: cri.ListPodSandboxRequest()),
    "ready pods": (
        "ListPodSandbox",
        lambda pod: cri.ListPodSandboxRequest(
            filter=cri.PodSandboxFilter(state=cri.PodSandboxStateValue())
        ),
    ),
    "pods by label": (
        "ListPodSandbox",
        lambda pod: cri.ListPodSandboxRequest(
            filter=cri.PodSandboxFilter(label_selector={"test": "criproxy"})
        ),
    ),
    "containers": ("ListContainers", lambda pod: cri.ListContainersRequest()),
    "stats": ("ListContainerStats", lambda pod: cri.ListContainerStatsRequest()),
    "sandbox stats": ("ListPodSandboxStats", lambda pod: cri.ListPodSandboxStatsRequest()),
    "images": ("ListImages", lambda pod: cri.ListImagesRequest()),
    "filesystems": ("ImageFsInfo", lambda pod: cri.ImageFsInfoRequest()),
}


@pytest.mark.parametrize("what", sorted(ROUTED))
def test_one_runtimes_answers_are_the_same_by_every_way(doors: Doors, what: str) -> None:
    name, make = ROUTED[what]
    request = make(doors.pod)
    direct = ask(doors.direct, name, request)
    assert ask(doors.alone, name, request) == direct
    assert ask(doors.mixed, name, request) == direct


@pytest.mark.parametrize("what", sorted(MERGED))
def test_with_one_runtime_merged_answers_are_its_own(doors: Doors, what: str) -> None:
    name, make = MERGED[what]
    request = make(doors.pod)
    assert ask(doors.alone, name, request) == ask(doors.direct, name, request)


@pytest.mark.parametrize("what", sorted(set(MERGED) - {"status", "verbose status"}))
def test_on_a_mixed_node_a_merged_answer_is_both_runtimes_and_nothing_else(
    doors: Doors, what: str
) -> None:
    name, make = MERGED[what]
    request = make(doors.pod)
    first, second = ask(doors.direct, name, request), ask(doors.second, name, request)
    mixed = ask(doors.mixed, name, request)
    for message in (first, second, mixed):
        assert isinstance(message, Message)
    image_names.in_response(second, image_names.outside(f"{SECOND}/"))
    first.MergeFrom(second)  # type: ignore[attr-defined]
    assert mixed == calm(first)  # type: ignore[arg-type]


def test_on_a_mixed_node_metric_descriptors_are_those_of_both_once(doors: Doors) -> None:
    name, request = "ListMetricDescriptors", cri.ListMetricDescriptorsRequest()
    assert ask(doors.mixed, name, request) == ask(doors.direct, name, request)


@pytest.mark.parametrize("verbose", [False, True])
def test_on_a_mixed_node_status_is_both_runtimes_with_the_primary_first(
    doors: Doors, verbose: bool
) -> None:
    method, request = BY_NAME["Status"], cri.StatusRequest(verbose=verbose)

    def status(client: Client) -> Any:
        answer = client.raw(method.path)(request.SerializeToString(), timeout=20)
        return method.response.FromString(answer)

    first, second, mixed = status(doors.direct), status(doors.second), status(doors.mixed)
    expected = []
    for name, answer in (("containerd", first), (SECOND, second)):
        for condition in answer.status.conditions:
            condition.reason = f"{name}: {condition.reason}" if condition.reason else name
            expected.append(condition)
    assert list(mixed.status.conditions) == expected
    handlers = {h.name: h for h in (*second.runtime_handlers, *first.runtime_handlers)}
    assert {h.name: h for h in mixed.runtime_handlers} == handlers
    assert mixed.features == first.features
    info = {**first.info, **{f"{SECOND}/{key}": text for key, text in second.info.items()}}
    assert {key: text for key, text in mixed.info.items() if key != "criproxy"} == info
    assert ("criproxy" in mixed.info) is verbose


def test_the_lists_above_have_every_read_only_method() -> None:
    asked = {name for name, _ in (*ROUTED.values(), *MERGED.values())}
    changing = {
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "UpdateContainerResources",
        "ReopenContainerLog",
        "ExecSync",
        "Exec",
        "Attach",
        "PortForward",
        "UpdateRuntimeConfig",
        "CheckpointContainer",
        "CheckpointPod",
        "RestorePod",
        "UpdatePodSandboxResources",
        "PullImage",
        "RemoveImage",
    }
    streams = {name for name, method in BY_NAME.items() if method.streaming}
    assert asked | changing | streams == set(BY_NAME)


@pytest.mark.parametrize(
    "name", sorted(n for n, m in BY_NAME.items() if m.streaming and n != "GetContainerEvents")
)
def test_streams_that_containerd_does_not_know_are_told_so(doors: Doors, name: str) -> None:
    def code(client: Client) -> object:
        call = client.channel.unary_stream(BY_NAME[name].path, bytes, bytes)
        try:
            return list(call(b"", timeout=10))
        except grpc.RpcError as error:
            return error.code(), error.details()

    assert code(doors.direct) == code(doors.alone) == code(doors.mixed)
