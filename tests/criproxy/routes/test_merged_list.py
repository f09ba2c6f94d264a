"""Lists and metrics of all runtimes in one answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from criproxy.config import Limits
from criproxy.methods import BY_NAME
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import COMMON_METRIC, FakeRuntime
from virtlet.cri import api_pb2 as cri


def test_a_list_has_everyones_items(client: Client) -> None:
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    assert client.pods() == {ordinary, vm}


def test_filters_are_applied_by_the_runtimes(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    stopped = [client.run_pod("a"), client.run_pod("b", target=VM)]
    client.run_pod("c")
    client.run_pod("d", target=VM)
    for pod in stopped:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
    wanted = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY))
    answer = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=wanted))
    assert {p.id for p in answer.items} == set(stopped)
    for runtime in (containerd, virtlet):
        assert cri.ListPodSandboxRequest(filter=wanted) in runtime.called("ListPodSandbox")


def test_a_filter_by_id_asks_only_the_owner(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    containerd.calls.clear()
    wanted = cri.ContainerFilter(pod_sandbox_id=pod)
    answer = client.runtime.ListContainers(cri.ListContainersRequest(filter=wanted))
    assert [c.id for c in answer.containers] == [container]
    assert cri.ListContainersRequest(filter=wanted) not in containerd.called("ListContainers")


@pytest.mark.parametrize(
    ("method", "field", "items"),
    [
        ("ListContainers", "id", "containers"),
        ("ListContainers", "pod_sandbox_id", "containers"),
        ("ListContainerStats", "id", "stats"),
        ("ListPodSandbox", "id", "items"),
    ],
)
def test_a_filter_by_the_beginning_of_an_id_asks_only_the_owner_for_the_whole_id(
    client: Client,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    method: str,
    field: str,
    items: str,
) -> None:
    client.create(client.run_pod())
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    by_pod = field == "pod_sandbox_id" or method == "ListPodSandbox"
    whole = pod if by_pod else container
    containerd.calls.clear()
    request = getattr(cri, f"{method}Request")(filter={field: whole[:13]})
    assert len(getattr(getattr(client.runtime, method)(request), items)) == 1
    assert getattr(virtlet.called(method)[-1].filter, field) == whole
    assert all(getattr(r.filter, field) == whole[:13] for r in containerd.called(method))
    nobody = getattr(cri, f"{method}Request")(filter={field: "nobody"})
    assert not getattr(getattr(client.runtime, method)(nobody), items) or method.endswith("Stats")


def test_a_filter_by_ids_of_two_runtimes_matches_nothing(client: Client) -> None:
    pod, other = client.run_pod("a"), client.run_pod("b", target=VM)
    wanted = cri.ContainerFilter(pod_sandbox_id=pod, id=client.create(other))
    answer = client.runtime.ListContainers(cri.ListContainersRequest(filter=wanted))
    assert not answer.containers


def test_runtimes_are_asked_side_by_side(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    both = threading.Barrier(2)

    def meet(runtime: FakeRuntime) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: Any) -> Any:
            # Passes only when the other is asked before this one has answered.
            both.wait(10)
            return runtime._ImageFsInfo(request, context)

        return answer

    for runtime in (containerd, virtlet):
        runtime.instead["ImageFsInfo"] = meet(runtime)
    answer = client.image.ImageFsInfo(cri.ImageFsInfoRequest())
    mountpoints = [f.fs_id.mountpoint for f in answer.image_filesystems]
    assert mountpoints == ["/containerd", f"/{VM}"]


def test_another_runtimes_container_filesystem_never_comes_first(
    client: Client, virtlet: FakeRuntime
) -> None:
    theirs = cri.FilesystemUsage(fs_id=cri.FilesystemIdentifier(mountpoint="/volumes"))
    virtlet.instead["ImageFsInfo"] = lambda request, context: cri.ImageFsInfoResponse(
        container_filesystems=[theirs]
    )
    answer = client.image.ImageFsInfo(cri.ImageFsInfoRequest())
    mountpoints = [f.fs_id.mountpoint for f in answer.container_filesystems]
    assert mountpoints == ["/containerd", "/volumes"]
    assert [f.fs_id.mountpoint for f in answer.image_filesystems] == ["/containerd"]


def test_statistics_of_all_are_listed(client: Client) -> None:
    ids = {client.create(client.run_pod("a")), client.create(client.run_pod("b", target=VM))}
    answer = client.runtime.ListContainerStats(cri.ListContainerStatsRequest())
    assert {s.attributes.id for s in answer.stats} == ids


def test_metric_descriptors_are_united(client: Client) -> None:
    answer = client.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    names = [d.name for d in answer.descriptors]
    assert names == [COMMON_METRIC, "only_containerd", "only_virtlet_cloud"]


def test_what_another_runtime_does_not_serve_is_left_out(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.missing.add("ListMetricDescriptors")
    answer = client.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    assert len(answer.descriptors) == 2


def test_what_the_primary_does_not_serve_is_unimplemented(
    client: Client, containerd: FakeRuntime
) -> None:
    # A kubelet then asks cAdvisor instead, for all pods.
    containerd.missing.add("ListPodSandboxStats")
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert said(caught) == "containerd has no ListPodSandboxStats"


def test_an_error_of_another_runtime_fails_the_list_and_names_it(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.instead["ListImages"] = lambda request, context: context.abort(
        grpc.StatusCode.INTERNAL, "disk broken"
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.image.ListImages(cri.ListImagesRequest())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert said(caught) == f"CRI runtime {VM}: disk broken"


def test_an_error_ends_the_waiting_for_the_others(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={"containerd": {"limits": Limits(read_seconds=30)}},
    )
    client = connect(proxy.config.listen)
    release = threading.Event()
    virtlet.instead["ListImages"] = lambda request, context: context.abort(
        grpc.StatusCode.INTERNAL, "disk broken"
    )

    def hang(request: Any, context: Any) -> Any:
        release.wait(30)
        return cri.ListImagesResponse()

    containerd.instead["ListImages"] = hang
    start = time.monotonic()
    with pytest.raises(grpc.RpcError):
        client.image.ListImages(cri.ListImagesRequest())
    release.set()
    assert time.monotonic() - start < 10


def test_with_one_runtime_a_list_is_its_own(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
) -> None:
    proxy = start_proxy({"containerd": containerd.path})
    client = connect(proxy.config.listen)
    pod = client.run_pod()
    raw = client.raw("/runtime.v1.RuntimeService/ListPodSandbox")
    direct = connect(containerd.path).raw("/runtime.v1.RuntimeService/ListPodSandbox")
    assert pod.encode() in raw(b"")
    assert raw(b"") == direct(b"")


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("runtime", "ListPodSandbox"),
        ("runtime", "ListContainers"),
        ("runtime", "ListContainerStats"),
        ("image", "ListImages"),
    ],
)
def test_items_keep_each_runtimes_order_the_primarys_first(
    client: Client,
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    service: str,
    name: str,
) -> None:
    for number in range(5):
        # Ids are the same inside and outside; other names are not.
        image = "sha256:" + f"{number}" * 64
        for target in (VM, ""):
            client.create(client.run_pod(f"{target}{number}", target=target), image=image)
        for runtime in (virtlet, containerd):
            runtime.add_image(image)

    def listed(path: Path | str) -> Any:
        method = BY_NAME[name]
        return getattr(getattr(connect(path), service), name)(method.request())

    expected = listed(containerd.path)
    expected.MergeFrom(listed(virtlet.path))
    merged = getattr(getattr(client, service), name)(BY_NAME[name].request())
    assert merged == expected


OWN = "only_virtlet_cloud"

Metrics = Callable[[Client], Iterable[Any]]


def listed(client: Client) -> Iterable[Any]:
    request = cri.ListPodSandboxMetricsRequest()
    yield from client.runtime.ListPodSandboxMetrics(request).pod_metrics


def streamed(client: Client) -> Iterable[Any]:
    for message in client.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest()):
        yield from message.pod_sandbox_metrics


@pytest.fixture(params=[listed, streamed])
def metrics(request: pytest.FixtureRequest) -> Metrics:
    found: Metrics = request.param
    return found


def labels(client: Client, pods: Iterable[Any]) -> dict[tuple[str, str], dict[str, str]]:
    """(container, metric) to the labels, by the keys that the client was told."""
    descriptors = client.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    keys = {d.name: d.label_keys for d in descriptors.descriptors}
    return {
        (container.container_id, m.name): dict(zip(keys[m.name], m.label_values, strict=True))
        for pod in pods
        for container in pod.container_metrics
        for m in container.metrics
    }


def test_labels_are_in_the_order_that_the_client_was_told(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, metrics: Metrics
) -> None:
    containerd.labels = ["id", "name", "image"]
    virtlet.labels = ["name", "pod", "id"]
    ordinary = client.create(client.run_pod("a"))
    vm = client.create(client.run_pod("b", target=VM))
    found = labels(client, metrics(client))
    assert found[ordinary, COMMON_METRIC] == {
        key: f"{key} of {ordinary}" for key in containerd.labels
    }
    assert found[vm, COMMON_METRIC] == {
        "id": f"id of {vm}",
        "name": f"name of {vm}",
        "image": "",
    }
    assert found[vm, OWN] == {key: f"{key} of {vm}" for key in virtlet.labels}


def test_a_runtime_without_descriptors_has_its_metrics_passed_on(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, metrics: Metrics
) -> None:
    virtlet.labels = ["name"]
    virtlet.missing.add("ListMetricDescriptors")
    containerd.missing.add("ListMetricDescriptors")
    vm = client.create(client.run_pod("b", target=VM))
    values = [
        list(m.label_values)
        for pod in metrics(client)
        for container in pod.container_metrics
        for m in container.metrics
    ]
    assert values == [[f"name of {vm}"]] * 2


def test_labels_stay_in_order_while_a_runtime_is_away(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime, metrics: Metrics
) -> None:
    virtlet.labels = ["name", "id"]
    vm = client.create(client.run_pod("b", target=VM))
    known = labels(client, listed(client))
    assert known[vm, COMMON_METRIC] == {"id": f"id of {vm}", "name": f"name of {vm}"}
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    assert labels(client, metrics(client)) == known


METRICS_CALLS = ("ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics")


def test_a_primary_that_has_no_metrics_takes_nobody_elses_away(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    virtlet.labels = ["name"]
    containerd.missing.update(METRICS_CALLS)
    assert list(listed(client)) == []
    client.create(client.run_pod("a"))
    vm = client.create(client.run_pod("b", target=VM))
    assert labels(client, listed(client)) == {
        (vm, COMMON_METRIC): {"name": f"name of {vm}"},
        (vm, OWN): {"name": f"name of {vm}"},
    }


@pytest.mark.parametrize("away", [False, True])
def test_where_nobody_has_metrics_the_primary_says_so(
    client: Client,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    proxy: RunningProxy,
    away: bool,
) -> None:
    containerd.missing.update(METRICS_CALLS)
    virtlet.missing.update(METRICS_CALLS)
    if away:
        virtlet.stop()
        proxy.wait_until(VM, answering=False)
    for ask, request in (
        (client.runtime.ListMetricDescriptors, cri.ListMetricDescriptorsRequest()),
        (client.runtime.ListPodSandboxMetrics, cri.ListPodSandboxMetricsRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "containerd has no" in str(caught.value.details())
