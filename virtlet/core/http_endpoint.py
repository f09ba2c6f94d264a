"""The manager's health and metrics over HTTP: /healthz, /readyz, /metrics, /metrics/pods."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.cri import api_pb2 as cri
from virtlet.http_port import HttpPort, respond

_HEAD_LIMIT = 8 * 1024
_PATIENCE = 10.0
"""Seconds for an answer: a plugin that is asked for the network's state may hang."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_PATHS = b"there are /healthz, /readyz, /metrics and /metrics/pods\n"


class HttpEndpoint:
    """A small HTTP server for GET.

    `/healthz` is 200 while the manager answers, whatever its plugins do; `/readyz` is 200 while its
    hypervisor and its network are ready, with the conditions of CRI's Status. `/metrics` is about
    the manager, `/metrics/pods` has CRI's metrics of pods and VMs under cAdvisor's names.

    Args:
        metrics: of the manager.
        status: CRI's Status.
        descriptors: CRI's ListMetricDescriptors.
        pods: CRI's ListPodSandboxMetrics.
    """

    def __init__(
        self,
        metrics: ManagerMetrics,
        status: Callable[[cri.StatusRequest], cri.StatusResponse],
        descriptors: Callable[
            [cri.ListMetricDescriptorsRequest], cri.ListMetricDescriptorsResponse
        ],
        pods: Callable[[cri.ListPodSandboxMetricsRequest], cri.ListPodSandboxMetricsResponse],
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._descriptors = descriptors
        self._pods = pods
        self._figures = ThreadPoolExecutor(2, "http")
        self._readiness = ThreadPoolExecutor(1, "http-ready")
        """Of its own: what holds up readiness, as a network plugin may, holds up no figures."""
        self.port = HttpPort(self._serve, _HEAD_LIMIT)

    async def stop(self) -> None:
        """Close the port; a look that hangs is not waited for."""
        await self.port.stop()
        for threads in (self._figures, self._readiness):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path = rest.split(b" ")[0].split(b"?")[0]
        answers: dict[bytes, tuple[Executor, Callable[[], tuple[str, bytes, str]]]] = {
            b"/readyz": (self._readiness, self._readyz),
            b"/metrics": (self._figures, lambda: ("200 OK", self._metrics.text(), _TEXT)),
            b"/metrics/pods": (self._figures, lambda: ("200 OK", self._pod_metrics(), _TEXT)),
        }
        if method not in (b"GET", b"HEAD"):
            respond(writer, "405 Method Not Allowed", b"only GET is answered\n")
        elif path == b"/healthz":
            respond(writer, "200 OK", b"ok\n")
        elif path not in answers:
            respond(writer, "404 Not Found", _PATHS)
        else:
            looking = asyncio.get_running_loop().run_in_executor(*answers[path])
            try:
                async with asyncio.timeout(_PATIENCE):
                    status, body, kind = await looking
            except TimeoutError:
                why = f"no answer within {_PATIENCE:.0f} s: a plugin may hang; see the log\n"
                respond(writer, "503 Service Unavailable", why.encode())
            else:
                respond(writer, status, body, kind)

    def _readyz(self) -> tuple[str, bytes, str]:
        conditions = self._status(cri.StatusRequest()).status.conditions
        told = [
            MessageToDict(condition, always_print_fields_with_no_presence=True)
            for condition in conditions
        ]
        status = "200 OK" if all(c.status for c in conditions) else "503 Service Unavailable"
        return status, json.dumps({"conditions": told}).encode() + b"\n", "application/json"

    def _pod_metrics(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(_PodMetrics(self._families))
        return generate_latest(registry)

    def _families(self) -> list[Metric]:
        families: dict[str, tuple[Metric, list[str]]] = {}
        for descriptor in self._descriptors(cri.ListMetricDescriptorsRequest()).descriptors:
            family = Metric(descriptor.name, descriptor.help, "unknown")
            families[descriptor.name] = family, list(descriptor.label_keys)
        for pod in self._pods(cri.ListPodSandboxMetricsRequest()).pod_metrics:
            of_vms = (metric for vm in pod.container_metrics for metric in vm.metrics)
            for metric in (*pod.metrics, *of_vms):
                family, keys = families[metric.name]
                if metric.metric_type == cri.COUNTER and metric.name.endswith("_total"):
                    family.name, family.type = metric.name.removesuffix("_total"), "counter"
                elif metric.metric_type == cri.GAUGE:
                    family.type = "gauge"
                labels = dict(zip(keys, metric.label_values, strict=True))
                family.add_sample(metric.name, labels, metric.value.value)
        return [family for family, _ in families.values() if family.samples]


class _PodMetrics(Collector):
    def __init__(self, families: Callable[[], list[Metric]]) -> None:
        self._families = families

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        return self._families()
