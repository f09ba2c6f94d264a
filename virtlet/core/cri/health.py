"""gRPC health checking and reflection beside CRI, for tools and probes."""

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from virtlet.cri import api_pb2 as cri
from virtlet.model.hypervisor import HypervisorHealth

WATCH_INTERVAL = 1.0
"""Seconds between two looks for a watching client."""

_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_SERVICES = (*(s.full_name for s in cri.DESCRIPTOR.services_by_name.values()), "")
"""Services with a health; "" is the server as a whole."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its package is untyped
    """SERVING while the hypervisor answers.

    Args:
        hypervisor: its health now; must not block.
    """

    def __init__(self, hypervisor: Callable[[], HypervisorHealth]) -> None:
        self._hypervisor = hypervisor
        self._ended = asyncio.Event()

    async def Check(  # noqa: N802 (the name is the protocol's)
        self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> Any:
        """The health of a service now."""
        if request.service not in _SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 (the name is the protocol's)
        self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[Any]:
        """The health of a service, now and whenever it changes; NOT_SERVING is the last word."""
        told = None
        while True:
            last = self._ended.is_set()
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), WATCH_INTERVAL)

    def end(self) -> None:
        """Serve no more: every watch is told and ends; on the loop."""
        self._ended.set()

    def _status(self, service: str) -> int:
        kinds = health_pb2.HealthCheckResponse
        if service not in _SERVICES:
            return int(kinds.SERVICE_UNKNOWN)
        serving = self._hypervisor().ready and not self._ended.is_set()
        return int(kinds.SERVING if serving else kinds.NOT_SERVING)


class _Reflection(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not so at run time
    """Reflection, imported when it is first asked for: few ask, and it takes a megabyte."""

    def service(self, handler_call_details: Any) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, if it is reflection's."""
        if handler_call_details.method != f"/{_REFLECTION}/ServerReflectionInfo":
            return None
        from grpc_reflection.v1alpha import reflection_pb2

        reflection: Any = importlib.import_module("grpc_reflection.v1alpha.reflection")

        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        servicer = reflection.aio.ReflectionServicer(
            [*filter(None, _SERVICES), health, _REFLECTION]
        )
        return grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )


def add_to(server: grpc.aio.Server, hypervisor: Callable[[], HypervisorHealth]) -> Health:
    """Serve health and reflection on a server that has not started yet."""
    health = Health(hypervisor)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((_Reflection(),))
    return health
