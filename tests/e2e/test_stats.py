"""What pods and VMs consume, told truthfully."""

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import BOOT_TIMEOUT, ROOT, Pod, PodFactory, make_manifest
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.core.metrics.sampler import AT_MOST_EVERY, INTERVAL
from virtlet.cri import api_pb2 as cri
from virtlet.model.quantity import parse_quantity

MIB = 1 << 20
BY_KERNEL = (
    "container_pressure_",
    "container_fs_reads_",
    "container_fs_writes_",
    "container_blkio_",
)
"""Metrics that not every node's kernel counts."""


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
    limit = pod.status.resources.linux.memory_limit_in_bytes
    # The guest has touched some of its RAM; what the emulator needs beside is not the container's.
    assert second.memory.working_set_bytes.value > 20 << 20
    assert second.memory.working_set_bytes.value <= second.memory.usage_bytes.value <= limit
    directory = pod.node.data_dir / "volumes" / pod.vm
    # The image is a second name of the store's, and no use of the VM's.
    own = [file for file in directory.iterdir() if file.name != "image"]
    allocated = {file.name: file.stat().st_blocks * 512 for file in own}
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


def test_an_idle_machine_takes_what_its_runtime_class_asks_for(new_pod: PodFactory) -> None:
    """So many fit onto a node as its CPUs carry; twice as much is allowed for, as nodes differ."""
    classes = ROOT / "deploy" / "cluster" / "runtimeclass.yaml"
    runtime_class = next(yaml.safe_load_all(classes.read_text()))
    asked = float(parse_quantity(runtime_class["overhead"]["podFixed"]["cpu"]))
    pod = new_pod().up()
    pod.wait_for_answer()
    share = 1.0

    def idle() -> bool:
        nonlocal share
        first = _stats(pod).cpu
        time.sleep(2 * INTERVAL)
        second = _stats(pod).cpu
        grown = second.usage_core_nano_seconds.value - first.usage_core_nano_seconds.value
        share = grown / (second.timestamp - first.timestamp)
        return share <= 2 * asked

    until(idle, f"a guest that takes {asked} CPUs when idle", 60)
    assert share > 0


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


def test_labels_tell_vms_and_pods_apart(new_pod: PodFactory) -> None:
    pods = [new_pod().up() for _ in range(2)]
    call = pods[0].client.call
    known = _descriptors(pods[0])
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
        nics = [m for m in mine.metrics if m.name.startswith("container_network_")]
        assert {labels["interface"] for labels in _labels(nics, known)} == {"eth0"}
        assert {labels["container"] for labels in _labels(mine.metrics, known)} == {""}
    assert len(set(series)) == len(series)


def _labels(metrics: Iterable[Any], known: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(known[m.name], m.label_values, strict=True)) for m in metrics]


def _descriptors(pod: Pod) -> dict[str, list[str]]:
    request = cri.ListMetricDescriptorsRequest()
    described = pod.client.call("ListMetricDescriptors", request).descriptors
    assert all(d.help for d in described)
    return {d.name: list(d.label_keys) for d in described}


def _metrics(pod: Pod) -> cri.PodSandboxMetrics:
    request = cri.ListPodSandboxMetricsRequest()
    pods = pod.client.call("ListPodSandboxMetrics", request).pod_metrics
    mine: cri.PodSandboxMetrics = next(m for m in pods if m.pod_sandbox_id == pod.id)
    return mine


def _of_vm(pod: Pod) -> dict[str, int]:
    """The last value of each metric of the VM."""
    return {m.name: m.value.value for c in _metrics(pod).container_metrics for m in c.metrics}


def _pod_stats(pod: Pod) -> cri.PodSandboxStats:
    request = cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter())
    listed = pod.client.call("ListPodSandboxStats", request).stats
    stats: cri.PodSandboxStats = next(s for s in listed if s.attributes.id == pod.id)
    return stats


@pytest.fixture(scope="module")
def kubelets_pod(node: Playground) -> Iterator[Pod]:
    """A pod in a control group as a kubelet makes it, whose guest has told of itself."""
    with pod_cgroup() as parent, node.client() as client:
        pod = Pod(node, client, make_manifest(node, "measured"))
        linux = pod.manifest.container.linux.resources
        pod.manifest.pod.linux.cgroup_parent = parent
        pod.manifest.pod.linux.overhead.memory_limit_in_bytes = 320 * MIB
        linux.cpu_period, linux.cpu_quota, linux.cpu_shares = 100_000, 200_000, 1024
        linux.memory_swap_limit_in_bytes = linux.memory_limit_in_bytes
        pod = pod.up()
        pod.wait_for_answer()
        guest = {"virtlet_vm_guest_available_bytes", "virtlet_vm_guest_unused_bytes"}
        until(lambda: guest <= set(_of_vm(pod)), "figures of the guest", BOOT_TIMEOUT)
        yield pod
        pod.down()


def test_a_containers_memory_is_the_guests_and_a_pods_is_its_control_groups(
    kubelets_pod: Pod,
) -> None:
    """A kubelet compares the one with the limit, and evicts by the other."""
    pod = kubelets_pod
    limit = pod.status.resources.linux.memory_limit_in_bytes
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter())
    listed = pod.client.call("ListContainerStats", request).stats
    memory = next(s for s in listed if s.attributes.id == pod.vm).memory
    metrics = _of_vm(pod)
    assert metrics["virtlet_vm_balloon_bytes"] == metrics["container_spec_memory_limit_bytes"]
    # All RAM that is not free; the kernel keeps some that it does not count as its own.
    used = limit - metrics["virtlet_vm_guest_unused_bytes"]
    assert abs(memory.usage_bytes.value - used) < 8 * MIB
    assert 0 < memory.working_set_bytes.value <= memory.usage_bytes.value < limit
    assert memory.available_bytes.value == limit - memory.working_set_bytes.value
    assert memory.rss_bytes.value <= memory.usage_bytes.value
    assert metrics["container_memory_cache"] > MIB

    # With the emulator, which has touched more than the guest says that it uses.
    group = _pod_stats(pod).linux.memory
    resident = _resident(pod.emulator)
    assert resident > memory.usage_bytes.value
    assert group.usage_bytes.value > resident * 0.8
    assert group.working_set_bytes.value <= group.usage_bytes.value
    assert {m.name for m in _metrics(pod).metrics if m.value.value > memory.usage_bytes.value} >= {
        "container_memory_usage_bytes",
        "container_memory_max_usage_bytes",
    }


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_figures_have_moved_after_a_second(kubelets_pod: Pod) -> None:
    """`crictl statsp` asks twice and fails where nothing did."""
    seen = []
    for _ in range(4):
        stats = _pod_stats(kubelets_pod).linux
        (container,) = stats.containers
        seen.append((stats.cpu, container.cpu))
        time.sleep(1)
    for before, after in itertools.pairwise(seen):
        for earlier, later in zip(before, after, strict=True):
            assert 0.9e9 < later.timestamp - earlier.timestamp < 3e9
            used = later.usage_core_nano_seconds.value - earlier.usage_core_nano_seconds.value
            assert 0 <= used <= 2.5 * (later.timestamp - earlier.timestamp)
    # An idle guest has its timer, too.
    first, last = seen[0], seen[-1]
    assert last[0].usage_core_nano_seconds.value > first[0].usage_core_nano_seconds.value


def test_every_metric_that_is_described_has_a_value(kubelets_pod: Pod) -> None:
    """As critest looks at it, with what only the node's kernel may lack."""
    known = _descriptors(kubelets_pod)
    metrics = _metrics(kubelets_pod)
    (of_vm,) = metrics.container_metrics
    found = [*metrics.metrics, *of_vm.metrics]
    for metric in found:
        assert len(metric.label_values) == len(known[metric.name])
    lacking = set(known) - {metric.name for metric in found}
    assert {name for name in lacking if not name.startswith(BY_KERNEL)} == set()

    value = _of_vm(kubelets_pod)
    assert value["container_spec_cpu_quota"] == 200_000
    assert value["container_spec_cpu_shares"] == 1024
    assert value["container_processes"] == 1
    assert value["container_threads"] > 1
    assert value["container_file_descriptors"] > value["container_sockets"] > 0
    assert value["container_oom_events_total"] == 0
    now = time.time()
    assert now - 600 < value["container_start_time_seconds"] <= value["container_last_seen"] <= now
    assert value["container_fs_inodes_free"] < value["container_fs_inodes_total"]


def test_statistics_of_what_is_unknown_are_not_found(new_pod: PodFactory) -> None:
    pod = new_pod()
    for method, request in (
        ("ContainerStats", cri.ContainerStatsRequest(container_id="x")),
        ("PodSandboxStats", cri.PodSandboxStatsRequest(pod_sandbox_id="x")),
    ):
        with pytest.raises(CallFailed, match="NOT_FOUND"):
            pod.client.call(method, request)
