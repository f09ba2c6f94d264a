"""Traces that go to a collector by OTLP; imported only where they are asked for."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import virtlet
from virtlet.traces import NO_SPAN, Span, Traces

_LAST = 2.0
"""Seconds for what is left at the end; a collector that is away must not hold up a restart."""
_CONTEXT = TraceContextTextMapPropagator()
_NAMES = {
    "pod": "virtlet.pod.id",
    "vm": "container.id",
    "container": "container.id",
    "vm_name": "k8s.container.name",
    "container_name": "k8s.container.name",
    "image": "container.image.name",
    "image_id": "container.image.id",
    "runtime": "container.runtime.name",
    "plugin": "virtlet.plugin",
    "role": "virtlet.role",
}
"""Attribute for a fact of log lines; other facts are not told."""


class OtlpTraces(Traces):
    """Makes spans and sends them in batches, on a thread of its own.

    Args:
        service: name of the service, unless the environment has one.
        environment: what else is said of them.
    """

    def __init__(self, service: str, environment: Mapping[str, str]) -> None:
        told = {"service.version": virtlet.__version__, "host.name": socket.gethostname()}
        named = "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if not named and not environment.get("OTEL_SERVICE_NAME"):
            told["service.name"] = service
        self._provider = TracerProvider(resource=Resource.create(told), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("virtlet", virtlet.__version__)

    def begin(self, method: str, received: Callable[[], Mapping[str, str]], *, alone: bool) -> Span:
        """Begin the span of a call, below the one that called it."""
        parent = _CONTEXT.extract(received(), contexts.Context())
        if not alone and not trace.get_current_span(parent).get_span_context().is_valid:
            return NO_SPAN
        told = {"rpc.system.name": "grpc", "rpc.method": method}
        kind = trace.SpanKind.SERVER
        return _OtlpSpan(self._tracer.start_span(method, parent, kind=kind, attributes=told))

    def step(self, name: str, facts: Mapping[str, str]) -> AbstractContextManager[None]:
        """Surround a step of the call under way, if that is recorded."""
        if not trace.get_current_span().is_recording():
            return super().step(name, facts)
        return self._step(name, facts)

    @contextmanager
    def _step(self, name: str, facts: Mapping[str, str]) -> Iterator[None]:
        # Neither an exception's text nor its traceback: they may quote a pod.
        with self._tracer.start_as_current_span(
            name,
            attributes=_attributes(facts),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def close(self) -> None:
        """Send what is left, for a moment."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_LAST)


class _OtlpSpan(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.recording = span.is_recording()

    def enter(self) -> None:
        contexts.attach(trace.set_span_in_context(self._span))

    def carried(self) -> Mapping[str, str]:
        passed: dict[str, str] = {}
        _CONTEXT.inject(passed, trace.set_span_in_context(self._span, contexts.Context()))
        return passed

    def end(self, code: str, problem: str, facts: Mapping[str, str]) -> None:
        self._span.set_attributes(_attributes(facts))
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_status(trace.StatusCode.ERROR, problem or None)
        self._span.end()


def _attributes(facts: Mapping[str, str]) -> dict[str, str]:
    told = {_NAMES[name]: value for name, value in facts.items() if name in _NAMES and value}
    if "pod_name" in facts:
        told["k8s.namespace.name"], _, told["k8s.pod.name"] = facts["pod_name"].partition("/")
    return told
