"""While the hypervisor hangs or is away: Status does not wait, and no figure is made up."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.cri.serving import Serving
from tests.core.metrics.measured import Measured
from virtlet.cli.client import Client
from virtlet.core.cri.runtime_calls import RuntimeCalls
from virtlet.core.cri.stats_calls import MetricsCalls, StatsCalls
from virtlet.core.metrics.sampler import AT_MOST_EVERY
from virtlet.cri import api_pb2 as cri


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    measured = Measured(tmp_path)
    yield measured
    measured.close()


@pytest.fixture
def client(measured: Measured, tmp_path: Path) -> Iterator[Client]:
    context, sampler = measured.manager.context, measured.sampler
    services = (
        StatsCalls(context, sampler),
        MetricsCalls(context, sampler),
        RuntimeCalls(context, "cgroupfs"),
    )
    calls = [call for service in services for call in service.calls()]
    serving = Serving(tmp_path / "s.sock", lambda loop: calls, context.hypervisors.default_health)
    with Client(tmp_path / "s.sock", timeout=20) as client:
        yield client
    serving.stop()


def _stats(client: Client, vm: str) -> cri.ContainerStats:
    reply: cri.ContainerStatsResponse = client.call(
        "ContainerStats", cri.ContainerStatsRequest(container_id=vm)
    )
    return reply.stats


def _runtime_ready(client: Client) -> cri.RuntimeCondition:
    reply: cri.StatusResponse = client.call("Status", cri.StatusRequest(), timeout=10)
    condition: cri.RuntimeCondition
    (condition,) = (c for c in reply.status.conditions if c.type == "RuntimeReady")
    return condition


def _wait_for_the_next_look(measured: Measured, name: str = "new") -> str:
    """Have a VM that the next question has to look for."""
    time.sleep(AT_MOST_EVERY + 0.05)
    return measured.start(name)


def test_status_is_quick_while_statistics_wait_for_a_hypervisor_that_hangs(
    client: Client, measured: Measured
) -> None:
    known = _stats(client, measured.vm)
    new = _wait_for_the_next_look(measured)
    measured.hypervisor.answers.clear()
    lists = [
        getattr(client.runtime, f"List{kind}").future(request(), timeout=20)
        for kind, request in (
            ("ContainerStats", cri.ListContainerStatsRequest),
            ("PodSandboxStats", cri.ListPodSandboxStatsRequest),
            ("PodSandboxMetrics", cri.ListPodSandboxMetricsRequest),
        )
        for _ in range(4)
    ]
    measured.hypervisor.away = "it hangs"
    condition = _runtime_ready(client)
    assert (condition.status, condition.reason, condition.message) == (
        False,
        "Away",
        "hypervisor of plugin fake: it hangs",
    )
    for answer in lists:
        answer.result(20)
    # What was known is told as it was; of the new one nothing is known, and nothing is told.
    stats = {item.attributes.id: item for item in lists[0].result().stats}
    assert stats[measured.vm].writable_layer == known.writable_layer
    assert stats[new].attributes.id == new
    assert not any(
        stats[new].HasField(field) for field in ("cpu", "memory", "writable_layer", "swap")
    )


def test_what_libvirt_tells_stays_as_it_was_while_that_is_away_and_the_kernel_tells_on(
    client: Client, measured: Measured
) -> None:
    _stats(client, measured.vm)
    guest = {"guest_available": 900 << 20, "guest_unused": 500 << 20}
    told_at = time.time_ns()
    measured.consume(
        measured.vm, cpu_time=5_000_000_000, balloon=1 << 30, guest_told_at=told_at, **guest
    )
    _wait_for_the_next_look(measured, "another")
    known = _stats(client, measured.vm)
    assert known.memory.working_set_bytes.value == 524 << 20
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=measured.pod)
    pod = client.call("PodSandboxStats", request).stats.linux
    _wait_for_the_next_look(measured)
    measured.hypervisor.away = "libvirt is away"
    looks = measured.hypervisor.looks
    now = _stats(client, measured.vm)
    assert measured.hypervisor.looks > looks
    assert now.writable_layer == known.writable_layer
    assert now.memory.usage_bytes == known.memory.usage_bytes
    assert now.cpu.timestamp > known.cpu.timestamp
    assert now.cpu.usage_core_nano_seconds.value >= known.cpu.usage_core_nano_seconds.value
    later = client.call("PodSandboxStats", request).stats.linux
    assert later.process == pod.process
    assert later.process.process_count.value == 1
    assert later.process.timestamp == known.writable_layer.timestamp


def test_a_pod_whose_machine_was_never_measured_has_no_processes_to_tell_of(
    client: Client, measured: Measured
) -> None:
    _stats(client, measured.vm)
    new = _wait_for_the_next_look(measured)
    measured.hypervisor.away = "libvirt is away"
    pods = client.call("ListPodSandboxStats", cri.ListPodSandboxStatsRequest()).stats
    (mine,) = (p for p in pods if [c.attributes.id for c in p.linux.containers] == [new])
    assert not any(mine.linux.HasField(field) for field in ("cpu", "memory", "process"))


def test_what_a_guest_does_not_tell_is_no_metric(client: Client, measured: Measured) -> None:
    def metrics() -> dict[str, int]:
        reply = client.call("ListPodSandboxMetrics", cri.ListPodSandboxMetricsRequest())
        (pod,) = (m for m in reply.pod_metrics if m.pod_sandbox_id == measured.pod)
        return {m.name: m.value.value for m in pod.container_metrics[0].metrics}

    _stats(client, measured.vm)
    found = metrics()
    assert found["virtlet_vm_balloon_bytes"] == 1 << 30
    assert not {"virtlet_vm_guest_available_bytes", "virtlet_vm_guest_unused_bytes"} & set(found)

    measured.consume(
        measured.vm, cpu_time=1, balloon=90 << 20, guest_available=80 << 20, guest_unused=0
    )
    _wait_for_the_next_look(measured)
    _stats(client, measured.vm)
    found = metrics()
    assert found["virtlet_vm_balloon_bytes"] == 90 << 20
    assert found["virtlet_vm_guest_available_bytes"] == 80 << 20
    assert found["virtlet_vm_guest_unused_bytes"] == 0
    known = client.call("ListMetricDescriptors", cri.ListMetricDescriptorsRequest()).descriptors
    assert {d.name for d in known if d.help} >= set(found)
