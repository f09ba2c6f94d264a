"""A collector of traces: OTLP over gRPC, with the published definitions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from attrs import frozen
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from virtlet.host import netns


@frozen
class Seen:
    """A span as it came."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    """Nanoseconds since the epoch."""
    end: int
    failed: str
    """The status's message, or its code without one; "" for a span that did not fail."""
    attributes: Mapping[str, str]


class Collector(services.TraceServiceServicer):
    """Takes spans, from the threads of gRPC."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Seen] = []
        self._servers: list[grpc.Server] = []
        self.received = b""
        """All that came, to look for what must not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.stop(None).wait()

    def listen(self, namespace: Path | None = None, port: int = 0) -> str:
        """Listen on loopback, in a network namespace; return the endpoint."""
        server = grpc.server(ThreadPoolExecutor(2))
        add: Any = services.add_TraceServiceServicer_to_server
        add(self, server)

        def bind() -> int:
            return server.add_insecure_port(f"127.0.0.1:{port}")

        bound = bind() if namespace is None else netns.inside(namespace, bind)
        server.start()
        self._servers.append(server)
        return f"http://127.0.0.1:{bound}"

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's name)
        """Take a batch."""
        with self._lock:
            self.received += request.SerializeToString()
            for resource in request.resource_spans:
                service = _told(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_seen(service, span) for span in scope.spans]
        return collector.ExportTraceServiceResponse()

    def spans(self) -> list[Seen]:
        """All that came, by their start."""
        with self._lock:
            return sorted(self._spans, key=lambda span: span.start)


def _seen(service: str, span: Any) -> Seen:
    status = span.status
    return Seen(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=(status.message or str(status.code)) if status.code == 2 else "",
        attributes=_told(span.attributes),
    )


def _told(attributes: Sequence[Any]) -> dict[str, str]:
    return {one.key: one.value.string_value for one in attributes}
