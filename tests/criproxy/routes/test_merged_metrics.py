"""Metrics of all runtimes, whose descriptors a client was told once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import COMMON_METRIC, FakeRuntime
from virtlet.cri import api_pb2 as cri

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
