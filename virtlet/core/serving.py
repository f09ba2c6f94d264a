"""Serving: the CRI calls on their socket, and the streaming server beside them."""

import asyncio
import logging
import signal
import ssl
from functools import partial

from attrs import frozen

from virtlet.console.hub import ConsoleHub
from virtlet.core import process_memory
from virtlet.core.config import options
from virtlet.core.cri.calls import Call
from virtlet.core.cri.event_calls import ContainerEvents
from virtlet.core.cri.grpc_server import CriServer
from virtlet.core.cri.image_calls import ImageCalls
from virtlet.core.cri.lifecycle_calls import ContainerCalls, ResizeCalls, SandboxCalls
from virtlet.core.cri.runtime_calls import RuntimeCalls
from virtlet.core.cri.session_calls import ExecCalls, StreamingCalls
from virtlet.core.cri.stats_calls import MetricsCalls, StatsCalls
from virtlet.core.cri.subjects import Subjects
from virtlet.core.guest_sessions.attach_and_forward import ConsoleAttacher, GuestDialer
from virtlet.core.guest_sessions.executions import Executions
from virtlet.core.http_endpoint import HttpEndpoint
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_answered
from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.core.metrics.sampler import Sampler
from virtlet.errors import FailedPrecondition
from virtlet.model.option import Settings
from virtlet.service_manager import READY, STOPPING, ServiceManager
from virtlet.streaming.handlers import Handlers
from virtlet.streaming.streaming_server import StreamingServer

log = logging.getLogger(__name__)

SETTLE_AFTER = 3.0
"""Seconds from ready until the start's memory is released; hypervisors warm up meanwhile."""
STOP_GRACE = 10.0
"""Seconds that calls under way get when the manager is asked to stop."""


@frozen
class Parts:
    """The servers, assembled but not started."""

    calls: tuple[Call, ...]
    """Every CRI call that is served."""
    streaming: StreamingServer
    executions: Executions
    http: HttpEndpoint


def assemble(
    context: Context,
    config: Settings,
    sampler: Sampler,
    hub: ConsoleHub,
    loop: asyncio.AbstractEventLoop,
    metrics: ManagerMetrics,
) -> Parts:
    """Assemble the servers for an event loop.

    Raises:
        FailedPrecondition: the streaming server's certificate cannot be used.
        InvalidArgument: the streaming server's address is invalid.
    """
    attacher, dialer = ConsoleAttacher(context, hub), GuestDialer(context)
    executions = Executions(context.store, context.hooks, answered=partial(tell_answered, context))
    handlers = Handlers(exec=executions, attach=attacher, ports=dialer)
    streaming = _streaming_server(config, handlers)
    runtime = RuntimeCalls(context, config[options.CGROUP_DRIVER])
    figures = MetricsCalls(context, sampler)
    services = (
        runtime,
        SandboxCalls(context),
        ContainerCalls(context),
        ResizeCalls(context),
        ImageCalls(context),
        ContainerEvents(context, loop),
        StatsCalls(context, sampler),
        figures,
        ExecCalls(context, executions, streaming),
        StreamingCalls(streaming, attacher, dialer),
    )
    calls = tuple(call for service in services for call in service.calls())
    http = HttpEndpoint(metrics, runtime.status, figures.descriptors, figures.list)
    return Parts(calls, streaming, executions, http)


async def serve_until_asked(
    context: Context,
    config: Settings,
    sampler: Sampler,
    hub: ConsoleHub,
    metrics: ManagerMetrics,
    service: ServiceManager,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        FailedPrecondition: a socket cannot be listened on; the message says which.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    parts = assemble(context, config, sampler, hub, loop, metrics)
    streaming = parts.streaming
    server = CriServer(
        config[options.LISTEN],
        parts.calls,
        context.hypervisors.default_health,
        Subjects(context.store, context.images.store.get),
        metrics.call,
        context.hooks.watch.traces,
    )
    try:
        await streaming.start()
    except OSError as error:
        raise FailedPrecondition(
            f"the streaming server cannot listen on {config[options.STREAM_ADDRESS]}, port "
            f"{config[options.STREAM_PORT]}: {error.strerror}; choose others with "
            "--stream-address and --stream-port"
        ) from None
    if address := config[options.METRICS_ADDRESS]:
        await _serve_http(parts.http, *address)
    await server.start()
    log.info(
        "ready",
        extra={
            "socket": str(config[options.LISTEN]),
            "streamPort": streaming.port,
            "instance": context.node.instance,
            "pods": len(context.store.pods),
            "vms": len(context.store.vms),
        },
    )
    service.tell(READY)
    settling = loop.call_later(SETTLE_AFTER, loop.run_in_executor, None, process_memory.settle)
    await stop.wait()
    settling.cancel()
    service.tell(STOPPING)
    log.info("stopping")
    await asyncio.gather(
        server.stop(STOP_GRACE),
        streaming.stop(),
        parts.http.stop(),
        asyncio.to_thread(parts.executions.close, STOP_GRACE / 2),
    )


async def _serve_http(endpoint: HttpEndpoint, host: str, port: int) -> None:
    try:
        address = await endpoint.port.start(host, port)
    except OSError as error:
        raise FailedPrecondition(
            f"health and metrics cannot be served on {host}, port {port}: {error.strerror}; "
            "choose another with --metrics-address"
        ) from None
    log.info("health and metrics are served on %s, port %d", *address)


def _streaming_server(config: Settings, handlers: Handlers) -> StreamingServer:
    address, port = config[options.STREAM_ADDRESS], config[options.STREAM_PORT]
    return StreamingServer(
        address,
        port,
        handlers,
        tls=tls_context(config),
        advertised_host=config[options.STREAM_HOST] or None,
    )


def tls_context(config: Settings) -> ssl.SSLContext | None:
    """The streaming server's certificate; None where it serves plain HTTP.

    Raises:
        FailedPrecondition: it cannot be used.
    """
    certificate, key = config[options.STREAM_TLS_CERT], config[options.STREAM_TLS_KEY]
    if not certificate:
        if key:
            raise FailedPrecondition(
                f"--stream-tls-key without --stream-tls-cert: name the certificate of {key}, too"
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        for file in (certificate, key or certificate):
            open(file).close()  # Its error names the file; that of load_cert_chain does not.
        # Without a password OpenSSL asks for that of an encrypted key at the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    except OSError as error:  # SSLError, too
        raise FailedPrecondition(
            f"--stream-tls-cert {certificate} with --stream-tls-key {key or certificate}: {error}; "
            "name PEM files of a certificate chain and of its key, without a password"
        ) from None
    return context
