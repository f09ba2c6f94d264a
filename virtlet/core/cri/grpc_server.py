"""The gRPC server: CRI's two services on a unix socket, with health checking and reflection."""

import asyncio
import contextlib
import importlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from virtlet.core.cri.calls import (
    Call,
    CallKind,
    Counted,
    Handler,
    instrument,
    instrument_stream,
)
from virtlet.core.cri.subjects import Subjects
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition
from virtlet.model.hypervisor import HypervisorHealth
from virtlet.traces import OFF, Traces

log = logging.getLogger(__name__)

WORKERS = 512
"""Most calls that change something at one time; threads are made as they are needed. A stop holds
one for its whole grace period, so there must be more than a node has pods."""
FEW = 4
"""Calls of each other kind at one time; the kinds have threads of their own, so that what holds
up one kind holds up no other."""
STREAM_GRACE = 1.0
"""Seconds that streams get to tell their clients of the end; one that does not read is not waited
for."""
MESSAGE_LIMIT = 16 << 20
"""Bytes; the kubelet's own limit for one message."""
_SOCKET_MODE = 0o660


class CriServer:
    """Serves CRI.

    Args:
        path: where to listen; a stale socket there is replaced, anything else refused.
        calls: what is served; every other call of the definition answers UNIMPLEMENTED.
        hypervisor_health: whether VMs can be run now; must not block.
        subjects: knows what requests are about.
        counted: hears of every call that is served.
        traces: has spans of the calls.
    """

    def __init__(
        self,
        path: Path,
        calls: Iterable[Call],
        hypervisor_health: Callable[[], HypervisorHealth],
        subjects: Subjects,
        counted: Counted = lambda method, code, seconds: None,
        traces: Traces = OFF,
    ) -> None:
        self._path = path
        self._executors = {
            CallKind.LOOK: ThreadPoolExecutor(FEW, "look"),
            CallKind.MEASURE: ThreadPoolExecutor(FEW, "measure"),
            CallKind.STATUS: ThreadPoolExecutor(FEW, "status"),
            CallKind.WORK: ThreadPoolExecutor(WORKERS, "work"),
        }
        executors: dict[CallKind, Executor] = dict(self._executors)
        self._calls = tuple(calls)
        self._served: dict[str, Any] = {
            call.name: instrument_stream(call, subjects, counted)
            if call.kind is CallKind.STREAM
            else instrument(call, executors, subjects, counted, traces)
            for call in self._calls
        }
        self._hypervisor_health = hypervisor_health
        self._server: grpc.aio.Server | None = None
        self._health: GrpcHealth | None = None
        self._answering = 0
        self._idle = asyncio.Event()
        """Whether no call but streams is under way."""
        self._idle.set()

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            FailedPrecondition: the socket's path cannot be used.
        """
        _make_room(self._path)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ]
        )
        for service in cri.DESCRIPTOR.services_by_name.values():
            handlers = {method.name: self._handler(service, method) for method in service.methods}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service.full_name, handlers),)
            )
        self._health = _add_health(server, self._hypervisor_health)
        # The socket is made by gRPC: nobody else may reach it before its mode is set.
        previous = os.umask(0o777 - _SOCKET_MODE)
        try:
            server.add_insecure_port(f"unix:{self._path}")
        finally:
            os.umask(previous)
        await server.start()
        self._path.chmod(_SOCKET_MODE)
        self._server = server

    async def stop(self, grace: float) -> None:
        """Take no new calls, give those under way `grace` seconds, and remove the socket.

        Streams without an end of their own are ended first.
        """
        for call in self._calls:
            call.end()
        if self._health is not None:
            self._health.end()
        if self._server is not None:
            await self._finish(self._server, grace)
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        self._path.unlink(missing_ok=True)

    async def _finish(self, server: grpc.aio.Server, grace: float) -> None:
        loop = asyncio.get_running_loop()
        stopping = loop.create_task(server.stop(grace))
        deadline = loop.time() + grace
        while not stopping.done() and (left := deadline - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)
            await asyncio.wait({stopping}, timeout=STREAM_GRACE)
            # A call that came in the last moment may have begun meanwhile.
            if self._idle.is_set():
                break
        await server.stop(None)
        await stopping

    def _handler(self, service: Any, method: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        name = f"{service.name}.{method.name}"
        serve = self._served[name]
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        if method.server_streaming:
            make = grpc.unary_stream_rpc_method_handler
        else:
            make, serve = grpc.unary_unary_rpc_method_handler, self._counted(serve)
        return make(serve, response_serializer=_serialise)

    def _counted(self, serve: Handler) -> Handler:
        """A unary call that the server's end waits for."""

        async def answer(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            self._answering += 1
            self._idle.clear()
            try:
                return await serve(request, context)
            finally:
                self._answering -= 1
                if self._answering == 0:
                    self._idle.set()

        return answer


def _serialise(reply: Message | bytes) -> bytes:
    """A reply on the wire; some come as bytes because they are kept so."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _make_room(path: Path) -> None:
    if len(os.fsencode(path)) > 107:
        raise FailedPrecondition(f"{path} is too long for a unix socket: 107 bytes at most")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(f"cannot listen on {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"{path} exists and is not a socket: move it or use --listen")
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) == 0:
            raise FailedPrecondition(
                f"somebody serves on {path} already: stop that, or use another --listen"
            )
    path.unlink()


WATCH_INTERVAL = 1.0
"""Seconds between two looks for a watching client."""

_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_SERVICES = (*(s.full_name for s in cri.DESCRIPTOR.services_by_name.values()), "")
"""Services with a health; "" is the server as a whole."""


class GrpcHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its package is untyped
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


def _add_health(server: grpc.aio.Server, hypervisor: Callable[[], HypervisorHealth]) -> GrpcHealth:
    """Serve health and reflection on a server that has not started yet."""
    health = GrpcHealth(hypervisor)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((_Reflection(),))
    return health
