"""Traces: spans of calls and of their steps, by OpenTelemetry, where the environment asks for them.

Only then OpenTelemetry is imported; else a span costs the call of a function that does nothing. The
kubelet's context comes and goes on as `traceparent` and `tracestate`, the W3C's Trace Context, in
the metadata of a call.

Source: "OpenTelemetry Environment Variable Specification" and "OpenTelemetry Protocol Exporter".
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

CONTEXT = ("traceparent", "tracestate")
"""Names of the metadata that carry a context."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXTRA = "virtlet[traces]"
_NO_STEP = nullcontext()


class TracesUnusable(Exception):
    """The environment asks for traces that cannot be made; says why, and what to do."""


class Span:
    """What a call's handler tells of it; this one tells nobody.

    Attributes:
        recording: whether anybody wants to know.
    """

    recording = False

    def enter(self) -> None:
        """Make it the parent of the steps of this context (see `contextvars`)."""

    def carried(self) -> Mapping[str, str]:
        """The metadata, of `CONTEXT`, with which the call goes on; empty to leave it as it came."""
        return {}

    def end(self, code: str, problem: str, facts: Mapping[str, str]) -> None:
        """The call has ended.

        Args:
            code: the name of its status.
            problem: its message, or "".
            facts: what it was about, as in log lines.
        """


NO_SPAN = Span()


class Traces:
    """Makes spans; this one makes none."""

    def begin(self, method: str, received: Callable[[], Mapping[str, str]], *, alone: bool) -> Span:
        """Begin the span of a call.

        Args:
            method: `package.Service/Method`.
            received: returns the metadata of `CONTEXT` that came with it.
            alone: whether there is a span for it where no context came.
        """
        return NO_SPAN

    def step(self, name: str, facts: Mapping[str, str]) -> AbstractContextManager[None]:
        """Surround a step of the call under way in this context; nothing to do without one.

        Args:
            name: what is done.
            facts: by the names of log lines.
        """
        return _NO_STEP

    def close(self) -> None:
        """Send what is left."""


OFF = Traces()


def from_environment(service: str, environment: Mapping[str, str]) -> Traces:
    """The traces that the environment asks for: by an endpoint, which has to be the process's own.

    Args:
        service: name of the service, where the environment has none.
        environment: of this process, from which OpenTelemetry takes all else.

    Raises:
        TracesUnusable: they cannot be made.
    """

    def said(*names: str) -> str:
        return next((value for name in names if (value := environment.get(name, "").strip())), "")

    endpoint = said(*_ENDPOINTS)
    off = said("OTEL_SDK_DISABLED").lower() == "true"
    if off or not endpoint or said("OTEL_TRACES_EXPORTER") == "none":
        return OFF
    protocol = said(*_PROTOCOLS) or "grpc"
    if protocol != "grpc":
        raise TracesUnusable(
            f"{_PROTOCOLS[1]}={protocol[:40]}: traces are sent by grpc alone; a collector takes it "
            "at port 4317"
        )
    try:
        from virtlet.otlp_traces import OtlpTraces
    except ImportError as error:
        raise TracesUnusable(
            f"{_ENDPOINTS[1]} asks for traces, for which {error.name} is missing: install "
            f"{_EXTRA}, or take the variable out"
        ) from None
    try:
        return OtlpTraces(service, environment)
    except Exception as error:  # Its text may quote the variable with a token.
        raise TracesUnusable(
            f"the exporter of traces refuses what variables OTEL_… say ({type(error).__name__}): "
            "see docs/traces.md"
        ) from None
