"""What pods and VMs consume, told truthfully."""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from tests.e2e.conftest import BOOT_TIMEOUT, Pod, PodFactory
from virtlet.cli.client import CallFailed
from virtlet.cli.steps import wait_until
from virtlet.core.metrics.sampler import AT_MOST_EVERY, INTERVAL
from virtlet.cri import api_pb2 as cri


def _stats(pod: Pod) -> cri.ContainerStats:
    request = cri.ContainerStatsRequest(container_id=pod.vm)
    stats: cri.ContainerStats = pod.client.call("ContainerStats", request).stats
    return stats


def test_a_machine_that_boots_uses_processor_memory_disk_and_network(new_pod: PodFactory) -> None:
    pod = new_pod().up()
    first = _stats(pod)
    pod.wait_for_answer()
    for _ in range(3):
        pod.get()
    time.sleep(INTERVAL + 1)
    second = _stats(pod)

    assert second.attributes.id == pod.vm
    grown = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    elapsed = second.cpu.timestamp - first.cpu.timestamp
    assert 0 < grown <= elapsed * 2.5
    assert second.memory.timestamp > 0
    # The guest has touched some of its 192 MiB, and the emulator needs some of its own.
    assert 60 << 20 < second.memory.working_set_bytes.value < 600 << 20
    assert second.memory.usage_bytes.value >= second.memory.working_set_bytes.value
    directory = pod.node.data_dir / "volumes" / pod.vm
    allocated = {file.name: file.stat().st_blocks * 512 for file in directory.iterdir()}
    used = second.writable_layer.used_bytes.value
    assert 0 < allocated["root.qcow2"] <= used <= sum(allocated.values())
    assert allocated["root.qcow2"] > sum(allocated.values()) // 2
    assert first.writable_layer.used_bytes.value < used

    request = cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id)
    stats = pod.client.call("PodSandboxStats", request).stats
    nic = stats.linux.network.default_interface
    assert nic.name == "eth0"
    assert nic.rx_bytes.value > 0
    assert nic.tx_bytes.value > 1000
    assert stats.linux.process.process_count.value == 1
    assert [c.attributes.id for c in stats.linux.containers] == [pod.vm]


def test_processor_time_never_goes_back_and_lists_hold_the_running_ones(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().up()
    seen = [_stats(pod).cpu.usage_core_nano_seconds.value]
    listed = pod.client.call("ListContainerStats", cri.ListContainerStatsRequest()).stats
    assert pod.vm in {s.attributes.id for s in listed}
    pods = pod.client.call("ListPodSandboxStats", cri.ListPodSandboxStatsRequest()).stats
    assert pod.id in {s.attributes.id for s in pods}
    pod.client.stop(pod.vm, 0)
    seen.append(_stats(pod).cpu.usage_core_nano_seconds.value)
    time.sleep(2 * INTERVAL)
    seen.append(_stats(pod).cpu.usage_core_nano_seconds.value)
    assert seen == sorted(seen)
    listed = pod.client.call("ListContainerStats", cri.ListContainerStatsRequest()).stats
    assert pod.vm not in {s.attributes.id for s in listed}


def test_metrics_have_cadvisors_names_and_labels_that_tell_vms_apart(
    new_pod: PodFactory,
) -> None:
    pods = [new_pod().up() for _ in range(2)]
    call = pods[0].client.call
    known = {
        d.name: list(d.label_keys)
        for d in call("ListMetricDescriptors", cri.ListMetricDescriptorsRequest()).descriptors
    }
    time.sleep(AT_MOST_EVERY)
    metrics = call("ListPodSandboxMetrics", cri.ListPodSandboxMetricsRequest()).pod_metrics
    series = []
    for pod in pods:
        mine = next(m for m in metrics if m.pod_sandbox_id == pod.id)
        (of_vm,) = mine.container_metrics
        for metric in [*mine.metrics, *of_vm.metrics]:
            (labels,) = _labels([metric], known)
            assert labels["pod"] == pod.pod.metadata.name
            assert labels["namespace"] == pod.pod.metadata.namespace
            series.append((metric.name, *metric.label_values))
        labels, *_ = _labels(of_vm.metrics, known)
        assert labels["id"] == labels["name"] == pod.vm
        assert labels["container"] == pod.manifest.container.metadata.name
        assert labels["image"] == pod.manifest.container.image.image
        assert {labels["interface"] for labels in _labels(mine.metrics, known)} == {"eth0"}
        names = {m.name for m in of_vm.metrics}
        assert {"container_cpu_usage_seconds_total", "container_fs_usage_bytes"} <= names
    assert len(set(series)) == len(series)


def _labels(metrics: Iterable[Any], known: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(known[m.name], m.label_values, strict=True)) for m in metrics]


def test_the_guests_own_view_of_its_memory_is_told_beside_the_emulators_footprint(
    new_pod: PodFactory,
) -> None:
    pod = new_pod().up()
    memory = pod.status.resources.linux.memory_limit_in_bytes

    def metrics() -> dict[str, int]:
        request = cri.ListPodSandboxMetricsRequest()
        pods = pod.client.call("ListPodSandboxMetrics", request).pod_metrics
        mine = next(m for m in pods if m.pod_sandbox_id == pod.id)
        return {m.name: m.value.value for c in mine.container_metrics for m in c.metrics}

    guest = {"virtlet_vm_guest_available_bytes", "virtlet_vm_guest_unused_bytes"}
    wait_until(lambda: guest <= set(metrics()), BOOT_TIMEOUT, "figures of the guest")
    found = metrics()
    assert found["virtlet_vm_balloon_bytes"] == memory > 0
    available = found["virtlet_vm_guest_available_bytes"]
    # The kernel keeps some of what it is given, and has some in use of what is left.
    assert memory / 2 < available < memory
    assert 0 < found["virtlet_vm_guest_unused_bytes"] < available
    assert found["container_memory_rss"] > 60 << 20
    request = cri.ListMetricDescriptorsRequest()
    told = {d.name: d.help for d in pod.client.call("ListMetricDescriptors", request).descriptors}
    assert all(told[name] for name in (*guest, "virtlet_vm_balloon_bytes"))


def test_statistics_of_what_is_unknown_are_not_found(new_pod: PodFactory) -> None:
    pod = new_pod()
    for method, request in (
        ("ContainerStats", cri.ContainerStatsRequest(container_id="x")),
        ("PodSandboxStats", cri.PodSandboxStatsRequest(pod_sandbox_id="x")),
    ):
        with pytest.raises(CallFailed, match="NOT_FOUND"):
            pod.client.call(method, request)
