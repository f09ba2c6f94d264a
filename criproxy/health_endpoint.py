"""The health and metrics endpoint: /healthz, /readyz, /metrics, and what is counted for it."""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from criproxy.rpc.messages import Code
from criproxy.runtimes.runtime import Runtime
from virtlet.http_port import HttpPort, respond

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0)


class Metrics:
    """Counts calls.

    `criproxy_runtime_…` are calls to runtimes, `criproxy_…` those that clients made: a merged list
    is one of the latter and several of the former.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._of_clients = _Calls("criproxy", ("method",))
        self._of_runtimes = _Calls("criproxy_runtime", ("runtime", "method"))
        self.registry.register(self._of_clients)
        self.registry.register(self._of_runtimes)

    def client_call(self, method: str, code: Code, seconds: float) -> None:
        """A client's call has ended."""
        self._of_clients.count((method,), code, seconds)

    def runtime_call(self, runtime: str, method: str, code: Code, seconds: float) -> None:
        """A call to a runtime has ended."""
        self._of_runtimes.count((runtime, method), code, seconds)

    def watch(self, runtimes: Sequence[Runtime]) -> None:
        """Add the runtimes' states."""
        self.registry.register(_RuntimeStates(runtimes))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Calls(Collector):
    """Calls and their durations by some labels.

    Plain numbers, made into metrics when they are scraped: a merged list counts several calls, and
    the library's counters, with locks and labels, would cost it a tenth of a millisecond.
    """

    def __init__(self, prefix: str, labels: tuple[str, ...]) -> None:
        self._prefix = prefix
        self._labels = labels
        self._codes: dict[tuple[tuple[str, ...], Code], int] = defaultdict(int)
        self._times: dict[tuple[str, ...], list[float]] = {}

    def count(self, labels: tuple[str, ...], code: Code, seconds: float) -> None:
        """A call has ended."""
        self._codes[labels, code] += 1
        times = self._times.get(labels)
        if times is None:
            # One count per bucket, one for longer calls, and the sum of seconds.
            times = self._times[labels] = [0.0] * (len(_BUCKETS) + 2)
        times[bisect_left(_BUCKETS, seconds)] += 1
        times[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            f"{self._prefix}_calls", "Calls by status code.", labels=(*self._labels, "code")
        )
        for (labels, code), number in self._codes.items():
            calls.add_metric((*labels, code.name), number)
        yield calls
        seconds = HistogramMetricFamily(
            f"{self._prefix}_call_seconds", "Time that calls took.", labels=self._labels
        )
        names = (*(str(bucket) for bucket in _BUCKETS), "+Inf")
        for labels, times in self._times.items():
            numbers = accumulate(times[:-1])
            seconds.add_metric(labels, list(zip(names, numbers, strict=True)), times[-1])
        yield seconds


class _RuntimeStates(Collector):
    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = runtimes

    def collect(self) -> Iterator[Metric]:
        now = time.monotonic()

        def gauge(name: str, text: str, values: Iterable[float]) -> Metric:
            family = GaugeMetricFamily(f"criproxy_runtime_{name}", text, labels=("runtime",))
            for runtime, value in zip(self._runtimes, values, strict=True):
                family.add_metric((runtime.name,), value)
            return family

        runtimes = self._runtimes
        yield gauge("up", "Whether it answers.", (float(r.answering) for r in runtimes))
        yield gauge(
            "away_seconds",
            "For how long it has not answered.",
            (0.0 if r.away_since is None else now - r.away_since for r in runtimes),
        )
        connects = CounterMetricFamily(
            "criproxy_runtime_connects", "Connections made to it.", labels=("runtime",)
        )
        for runtime in runtimes:
            connects.add_metric((runtime.name,), runtime.connects)
        yield connects
        yield gauge(
            "sandboxes", "Its pods as last heard.", (float(len(r.last.sandboxes)) for r in runtimes)
        )


_HEAD_LIMIT = 8 * 1024


class Endpoint:
    """A small HTTP server for GET.

    `/healthz` is 200 while the proxy runs, `/readyz` is 200 while its primary runtime answers;
    both say in JSON how each runtime is.

    Args:
        runtimes: the primary first.
        metrics: shown under /metrics.
    """

    def __init__(self, runtimes: Sequence[Runtime], metrics: Metrics) -> None:
        self._runtimes = runtimes
        self._metrics = metrics
        self.port = HttpPort(self._serve, _HEAD_LIMIT)

    async def _serve(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path = rest.split(b" ")[0].split(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            respond(writer, "405 Method Not Allowed", b"only GET is answered\n")
        elif path == b"/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            respond(writer, "200 OK", self._metrics.text(), kind)
        elif path == b"/healthz":
            respond(writer, "200 OK", self._health(), "application/json")
        elif path == b"/readyz":
            ready = self._runtimes[0].answering
            status = "200 OK" if ready else "503 Service Unavailable"
            respond(writer, status, self._health(), "application/json")
        else:
            respond(writer, "404 Not Found", b"there are /healthz, /readyz and /metrics\n")

    def _health(self) -> bytes:
        states = [
            {
                "name": r.name,
                "primary": r.primary,
                "answering": r.answering,
                "reason": r.reason,
                "everSeen": r.last.seen,
            }
            for r in self._runtimes
        ]
        return json.dumps({"runtimes": states}).encode() + b"\n"
