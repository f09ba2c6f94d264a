"""What can be asked of the server, and what cannot."""

from typing import Any

import pytest

from virtlet.errors import InvalidArgument, Unavailable
from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    ExitStatus,
    Handlers,
    PortForwardRequest,
    StreamingServer,
)

from .fakes.handlers import FakeConsole, LocalExec, LoopbackDialer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({}, "at least one of stdin"),
        ({"tty": True}, "at least one of stdin"),
        ({"stdout": True, "stderr": True, "tty": True}, "tty or stderr, not both"),
    ],
)
def test_impossible_streams_are_refused(streams: dict[str, bool], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ExecRequest(container_id="vm", command=("true",), **streams)
    with pytest.raises(InvalidArgument, match=message):
        AttachRequest(container_id="vm", **streams)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_ports_are_refused(port: int) -> None:
    with pytest.raises(InvalidArgument, match=f"port {port} is not between"):
        PortForwardRequest(sandbox_id="pod", ports=(80, port))


def test_more_ports_than_channels_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most 127"):
        PortForwardRequest(sandbox_id="pod", ports=tuple(range(1, 129)))


def test_an_exit_code_is_one_byte() -> None:
    with pytest.raises(ValueError, match="must be <= 255"):
        ExitStatus(256)


def a_server(runner: LocalExec, address: str, **options: Any) -> StreamingServer:
    handlers = Handlers(exec=runner, attach=FakeConsole(), ports=LoopbackDialer())
    return StreamingServer(address, 0, handlers, **options)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "[::1]"),
    ],
)
async def test_urls_are_absolute_and_name_a_reachable_address(
    runner: LocalExec, address: str, host: str
) -> None:
    server = a_server(runner, address)
    await server.start()
    try:
        request = ExecRequest(container_id="vm", command=("true",), stdout=True)
        assert server.exec_url(request).startswith(f"http://{host}:{server.port}/exec/")
        attach = AttachRequest(container_id="vm", stdout=True)
        assert server.attach_url(attach).startswith(f"http://{host}:{server.port}/attach/")
        forward = server.port_forward_url(PortForwardRequest(sandbox_id="pod"))
        assert forward.startswith(f"http://{host}:{server.port}/portforward/")
    finally:
        await server.stop()


async def test_urls_name_the_advertised_host(runner: LocalExec) -> None:
    server = a_server(runner, "127.0.0.1", advertised_host="node-1.example")
    await server.start()
    try:
        url = server.attach_url(AttachRequest(container_id="vm", stdout=True))
        assert url.startswith(f"http://node-1.example:{server.port}/attach/")
    finally:
        await server.stop()


async def test_a_server_that_does_not_run_gives_no_urls(runner: LocalExec) -> None:
    server = a_server(runner, "127.0.0.1")
    with pytest.raises(Unavailable, match="does not run"):
        server.port_forward_url(PortForwardRequest(sandbox_id="pod"))
    await server.start()
    await server.stop()
    with pytest.raises(Unavailable, match="does not run"):
        server.port_forward_url(PortForwardRequest(sandbox_id="pod"))


async def test_an_address_must_be_one(runner: LocalExec) -> None:
    with pytest.raises(InvalidArgument, match="'localhost' is no IP address"):
        a_server(runner, "localhost")
