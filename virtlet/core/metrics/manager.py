"""What the manager counts about itself, for Prometheus: calls, steps, waits, and what there is."""

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.template_store import FAILED, MAKING, READY
from virtlet.core.store.records import PodRecord, VmPhase
from virtlet.model.event import Event, EventKind

_CALL_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0)
_STEP_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class ManagerMetrics:
    """Counts, from any thread, and shows what was counted."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._calls = Counter(
            "virtlet_calls",
            "CRI calls by status code.",
            ("method", "code"),
            registry=self._registry,
        )
        self._call_seconds = Histogram(
            "virtlet_call_seconds",
            "Time that CRI calls took.",
            ("method",),
            buckets=_CALL_BUCKETS,
            registry=self._registry,
        )
        self._step_seconds = Histogram(
            "virtlet_step_seconds",
            "Time that effects on the node took, by kind; outcome is done or failed.",
            ("step", "outcome"),
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        )
        self._wait_seconds = Histogram(
            "virtlet_pod_wait_seconds",
            "Time that work on a pod waited for earlier work on it.",
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        )
        self._events = Counter(
            "virtlet_events", "Committed changes, by kind.", ("kind",), registry=self._registry
        )
        self._ends = Counter(
            "virtlet_vm_ends", "VMs that ended, by reason.", ("reason",), registry=self._registry
        )

    def call(self, method: str, code: str, seconds: float) -> None:
        """A CRI call has ended."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def step(self, kind: str, outcome: str, seconds: float) -> None:
        """An effect was performed, or failed; see `Journal.perform`."""
        self._step_seconds.labels(kind, outcome).observe(seconds)

    def waited(self, seconds: float) -> None:
        """Work on a pod has waited for earlier work."""
        self._wait_seconds.observe(seconds)

    def event(self, event: Event, removed: PodRecord | None = None) -> None:
        """A change was committed."""
        self._events.labels(event.kind.value).inc()
        if event.kind is EventKind.VM_STOPPED:
            self._ends.labels(event.reason or "Unknown").inc()

    def watch(self, context: Context) -> None:
        """Add what there is at the moment of each scrape."""
        self._registry.register(_Present(context))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Present(Collector):
    """What the manager has now; nothing of it is counted as it changes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def describe(self) -> list[Metric]:
        """Nothing is looked at to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look at the store, the images and the hypervisors."""
        context = self._context
        yield _gauge("virtlet_pods", "Pods, also those that are stopped.", len(context.store.pods))
        phases = Tally(record.phase for record in context.store.vms.values())
        vms = GaugeMetricFamily("virtlet_vms", "VMs by state.", labels=("state",))
        for phase in VmPhase:
            vms.add_metric((phase.value,), phases[phase])
        yield vms
        yield _gauge(
            "virtlet_open_effects",
            "Effects that were begun and have no record yet: under way, or left by a crash.",
            context.store.open_effects(),
        )
        images = context.images.store.list()
        yield _gauge("virtlet_images", "Images in the store.", len(images))
        yield _gauge("virtlet_image_bytes", "What they take.", sum(i.size for i in images))
        yield from self._templates()
        health = GaugeMetricFamily(
            "virtlet_hypervisor_ready",
            "Whether the hypervisor of a plugin can run VMs.",
            labels=("plugin",),
        )
        for plugin in context.hypervisors.all:
            health.add_metric((plugin,), float(context.hypervisors.health(plugin).ready))
        yield health

    def _templates(self) -> Iterator[Metric]:
        context = self._context
        known = context.templates.known(context.paths.templates)
        states = Tally(template.state for template in known)
        number = GaugeMetricFamily("virtlet_templates", "Templates by state.", labels=("state",))
        for state in (READY, MAKING, FAILED):
            number.add_metric((state,), states[state])
        yield number
        taken = GaugeMetricFamily(
            "virtlet_template_bytes",
            "What templates take: memory of their guests, and disk space.",
            labels=("of",),
        )
        ready = [template for template in known if template.state == READY]
        taken.add_metric(("memory",), sum(template.memory for template in ready))
        taken.add_metric(("disk",), sum(template.disk for template in ready))
        yield taken
        counts = context.templates.counts()
        for name, what, text in (
            ("virtlet_templates_made", "made", "Templates that were made."),
            ("virtlet_templates_failed", "failed", "Templates that were not made, or did not do."),
            ("virtlet_warm_starts", "warm", "VMs that started from a template."),
        ):
            yield CounterMetricFamily(name, text, value=counts.get((what, ""), 0))
        for name, what, text in (
            ("virtlet_templates_evicted", "evicted", "Templates that made way, by what for."),
            ("virtlet_cold_starts", "cold", "VMs that may start warm and booted, by reason."),
        ):
            family = CounterMetricFamily(name, text, labels=("reason",))
            for (which, reason), count in counts.items():
                if which == what:
                    family.add_metric((reason,), count)
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
