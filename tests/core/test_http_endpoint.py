"""Health and metrics of a manager over HTTP, as Prometheus and probes ask for them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.manager import Manager, Node
from virtlet.core.cri.runtime_calls import RuntimeCalls
from virtlet.core.cri.stats_calls import MetricsCalls
from virtlet.core.http_endpoint import HttpEndpoint
from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.core.metrics.sampler import Sampler
from virtlet.model.event import Event, EventKind


class Observed:
    """A manager on a node in memory, and its endpoint on a loop of its own."""

    def __init__(self, root: Path) -> None:
        self.manager = Manager(Node(root))
        context = self.manager.context
        self.metrics = ManagerMetrics()
        self.metrics.watch(context)
        self.runtime = RuntimeCalls(context, "systemd")
        figures = MetricsCalls(context, Sampler(context))
        self.asked = threading.Event()
        self.endpoint = HttpEndpoint(
            self.metrics, self.runtime.status, figures.descriptors, figures.list
        )
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        start = self.endpoint.port.start("127.0.0.1", 0)
        _, port = asyncio.run_coroutine_threadsafe(start, self.loop).result(10)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def samples(self, path: str = "/metrics") -> dict[tuple[str, frozenset[str]], float]:
        """Each value by its name and the values of its labels."""
        return {
            (sample.name, frozenset(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(self.client.get(path).text)
            for sample in family.samples
        }

    def close(self) -> None:
        self.client.close()
        asyncio.run_coroutine_threadsafe(self.endpoint.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.manager.close()


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    made = Observed(tmp_path)
    yield made
    made.close()


def test_readiness_follows_the_hypervisor_and_names_the_reason(observed: Observed) -> None:
    answer = observed.client.get("/readyz")
    conditions = {c["type"]: c for c in answer.json()["conditions"]}
    assert (answer.status_code, conditions["RuntimeReady"]["status"]) == (200, True)
    assert conditions["NetworkReady"]["status"]

    observed.manager.node.hypervisor.away = "libvirt is gone"
    answer = observed.client.get("/readyz")
    conditions = {c["type"]: c for c in answer.json()["conditions"]}
    assert (answer.status_code, conditions["RuntimeReady"]["status"]) == (503, False)
    assert conditions["RuntimeReady"]["message"] == "hypervisor of plugin fake: libvirt is gone"
    assert observed.client.get("/healthz").status_code == 200


def test_what_there_is_is_counted_when_it_is_asked_for(observed: Observed) -> None:
    manager = observed.manager
    vm = manager.create(manager.run())
    assert observed.samples()["virtlet_vms", frozenset({"created"})] == 1
    manager.start(vm)
    samples = observed.samples()
    assert samples["virtlet_pods", frozenset()] == 1
    assert samples["virtlet_vms", frozenset({"running"})] == 1
    assert samples["virtlet_vms", frozenset({"created"})] == 0
    assert samples["virtlet_images", frozenset()] == 1
    assert samples["virtlet_image_bytes", frozenset()] > 0
    assert samples["virtlet_open_effects", frozenset()] == 0


def test_calls_steps_waits_and_ends_are_counted(observed: Observed) -> None:
    metrics = observed.metrics
    metrics.call("StartContainer", "OK", 0.2)
    metrics.call("StartContainer", "UNAVAILABLE", 3.0)
    metrics.step("network", "done", 0.04)
    metrics.waited(1.0)
    metrics.event(Event(kind=EventKind.VM_STOPPED, subject="vm", reason="OOMKilled"))
    samples = observed.samples()
    assert samples["virtlet_calls_total", frozenset({"StartContainer", "OK"})] == 1
    assert samples["virtlet_calls_total", frozenset({"StartContainer", "UNAVAILABLE"})] == 1
    assert samples["virtlet_call_seconds_bucket", frozenset({"StartContainer", "0.5"})] == 1
    assert samples["virtlet_step_seconds_sum", frozenset({"network", "done"})] == 0.04
    assert samples["virtlet_pod_wait_seconds_count", frozenset()] == 1
    assert samples["virtlet_vm_ends_total", frozenset({"OOMKilled"})] == 1
    assert samples["virtlet_events_total", frozenset({"vm-stopped"})] == 1


def test_templates_are_counted_with_what_they_take_and_why_vms_boot(observed: Observed) -> None:
    context = observed.manager.context
    parent = context.paths.templates
    parent.mkdir()

    def make(place: Path) -> None:
        (place / "ram").write_bytes(b"x" * 8192)

    assert context.templates.find(parent, "one", make, {"memory": 1 << 20}) is None
    context.templates.wait(20)
    context.templates.count("cold", "none yet")
    samples = observed.samples()
    assert samples["virtlet_templates", frozenset({"ready"})] == 1
    assert samples["virtlet_templates", frozenset({"making"})] == 0
    assert samples["virtlet_template_bytes", frozenset({"memory"})] == 1 << 20
    assert samples["virtlet_template_bytes", frozenset({"disk"})] >= 8192
    assert samples["virtlet_templates_made_total", frozenset()] == 1
    assert samples["virtlet_warm_starts_total", frozenset()] == 0
    assert samples["virtlet_cold_starts_total", frozenset({"none yet"})] == 1
    (directory,) = parent.iterdir()
    context.templates.discard(directory, "its guest does not thaw")
    samples = observed.samples()
    assert samples["virtlet_templates", frozenset({"failed"})] == 1
    assert samples["virtlet_templates_failed_total", frozenset()] == 1
    assert samples["virtlet_templates_evicted_total", frozenset({"broken"})] == 1


def test_other_paths_and_methods_are_refused(observed: Observed) -> None:
    missing = observed.client.get("/secrets")
    assert (missing.status_code, "/metrics/pods" in missing.text) == (404, True)
    assert observed.client.post("/metrics").status_code == 405


def test_a_plugin_that_hangs_holds_up_no_other_question(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    status = observed.runtime.status

    def hang(request: object) -> object:
        let_go.wait(60)
        return status(request)  # type: ignore[arg-type]

    monkeypatch.setattr("virtlet.core.http_endpoint._PATIENCE", 0.2)
    monkeypatch.setattr(observed.endpoint, "_status", hang)
    try:
        for _ in range(3):
            answer = observed.client.get("/readyz")
            assert (answer.status_code, "hang" in answer.text) == (503, True)
        assert observed.client.get("/healthz").status_code == 200
        assert "virtlet_pods" in observed.client.get("/metrics").text
    finally:
        let_go.set()
