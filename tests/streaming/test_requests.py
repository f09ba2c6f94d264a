"""What can be asked of the server, with which token, and with which words it is refused."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.polling import until_async
from virtlet.errors import InvalidArgument, ResourceExhausted, Unavailable
from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    ExitStatus,
    Handlers,
    PortForwardRequest,
    SessionLimits,
    StreamingServer,
)
from virtlet.streaming.lifetime import TokenStore
from virtlet.streaming.spdy_frames import FrameEncoder, Ping

from .conftest import ServerMaker
from .fakes.handlers import FakeConsole, LocalExec, LoopbackDialer
from .fakes.spdy_client import Refused, SpdyClient
from .fakes.websocket_client import WebSocketClient

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_gives_its_request_once() -> None:
    store: TokenStore[str] = TokenStore(60, 10)
    token = store.issue("request")
    assert store.redeem(token, str) == "request"
    assert store.redeem(token, str) is None


def test_a_token_ends_after_its_lifetime() -> None:
    clock = Clock()
    store: TokenStore[str] = TokenStore(60, 10, clock)
    early, late = store.issue("early"), ""
    clock.now += 59
    late = store.issue("late")
    clock.now += 1
    assert store.redeem(early, str) is None
    assert store.redeem(late, str) == "late"


def test_a_token_is_kept_when_asked_for_as_another_kind() -> None:
    store: TokenStore[str | int] = TokenStore(60, 10)
    token = store.issue("request")
    assert store.redeem(token, int) is None
    assert store.redeem(token, str) == "request"


def test_tokens_are_long_and_all_different() -> None:
    store: TokenStore[int] = TokenStore(60, 1000)
    tokens = {store.issue(number) for number in range(1000)}
    assert len(tokens) == 1000
    assert min(map(len, tokens)) >= 32


def test_too_many_unused_tokens_are_refused_until_they_end() -> None:
    clock = Clock()
    store: TokenStore[int] = TokenStore(60, 3, clock)
    for number in range(3):
        store.issue(number)
    with pytest.raises(ResourceExhausted, match="3 streaming URLs wait"):
        store.issue(4)
    clock.now += 60
    assert store.issue(5)


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


ATTACH = AttachRequest(container_id="vm", stdin=True, stdout=True)
UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"


async def answer(server: StreamingServer, request: str | bytes) -> str:
    """Send raw bytes; return what the server says before it closes."""
    octets = request.encode() if isinstance(request, str) else request
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(octets)
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text


async def test_a_url_serves_one_connection(server: StreamingServer) -> None:
    url = server.attach_url(ATTACH)
    async with await SpdyClient.connect(url, "v4.channel.k8s.io"):
        with pytest.raises(Refused, match="404 .*unknown, was used before or is older"):
            await SpdyClient.connect(url, "v4.channel.k8s.io")


async def test_a_url_ends_after_its_time(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(token_seconds=0.1))
    url = server.attach_url(ATTACH)
    await asyncio.sleep(0.15)
    with pytest.raises(Refused, match=r"404 .*older than 0\.1 seconds; ask for a new one"):
        await SpdyClient.connect(url, "v4.channel.k8s.io")


async def test_an_unknown_token_is_refused(server: StreamingServer) -> None:
    url = server.attach_url(ATTACH).rsplit("/", 1)[0] + "/guess"
    with pytest.raises(Refused, match="404 .*this attach URL is unknown"):
        await WebSocketClient.connect(url, "v4.channel.k8s.io")


async def test_a_token_serves_only_its_kind_of_session(server: StreamingServer) -> None:
    url = server.attach_url(ATTACH)
    with pytest.raises(Refused, match="404 .*this exec URL is unknown"):
        await SpdyClient.connect(url.replace("/attach/", "/exec/"), "v4.channel.k8s.io")


async def test_a_request_that_cannot_be_served_spends_no_token(server: StreamingServer) -> None:
    url = server.attach_url(ATTACH)
    with pytest.raises(Refused, match="403 .*offer one of v5.channel.k8s.io, v4.channel.k8s.io"):
        await SpdyClient.connect(url, "v9.channel.k8s.io")
    with pytest.raises(Refused, match="403 .*offer one of"):
        await WebSocketClient.connect(url, "portforward.k8s.io")
    path = urlsplit(url).path
    assert "426" in await answer(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
    async with await SpdyClient.connect(url, "v4.channel.k8s.io") as client:
        assert client.protocol == "v4.channel.k8s.io"


async def test_the_clients_first_known_protocol_is_taken(server: StreamingServer) -> None:
    offers = ("v9.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io")
    async with await SpdyClient.connect(server.attach_url(ATTACH), *offers) as spdy:
        assert spdy.protocol == "v3.channel.k8s.io"
    newest = ("v5.channel.k8s.io", "v4.channel.k8s.io")
    async with await WebSocketClient.connect(server.attach_url(ATTACH), *newest) as websocket:
        assert websocket.protocol == "v5.channel.k8s.io"
    url = server.port_forward_url(PortForwardRequest(sandbox_id="pod"))
    async with await SpdyClient.connect(url, "portforward.k8s.io") as spdy:
        assert spdy.protocol == "portforward.k8s.io"


@pytest.mark.parametrize(
    ("request_text", "wanted"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("DELETE /exec/x HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n", "ask for an upgrade to SPDY/3.1 or websocket"),
        ("GET /exec/../../etc HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (f"POST /exec/x HTTP/1.1\r\nHost: x\r\n{UPGRADE}Content-Length: 2\r\n\r\nhi", "no body"),
        (f"GET /exec/x HTTP/1.1\r\n{UPGRADE}\r\n", "400"),
        ("nonsense\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", "400"),
        ("GET /exec/x HTTP/1.1\r\nHost: x\r\nX: " + "y" * 70_000, "431"),
        (
            "GET /exec/x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n",
            "404",
        ),
    ],
)
async def test_a_bad_request_gets_its_status_and_closes(
    server: StreamingServer, request_text: str | bytes, wanted: str
) -> None:
    text = await answer(server, request_text)
    assert text.startswith("HTTP/1.1 4")
    assert wanted in text
    assert "connection: close" in text.lower()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Sec-WebSocket-Key: a\r\nSec-WebSocket-Version: 8\r\n", "426"),
        ("Sec-WebSocket-Version: 13\r\n", "400"),
    ],
)
async def test_a_bad_websocket_handshake_is_refused(
    server: StreamingServer, headers: str, status: str
) -> None:
    path = urlsplit(server.attach_url(ATTACH)).path
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n"
    text = await answer(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n{upgrade}{headers}\r\n")
    assert text.startswith(f"HTTP/1.1 {status}")


async def test_a_request_that_does_not_end_is_given_up(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(head_seconds=0.1))
    text = await answer(server, "GET /exec/x HTTP/1.1\r\n")
    assert text.startswith("HTTP/1.1 408")
    assert "no whole request within 0.1 seconds" in text


async def test_a_client_that_leaves_before_its_request_leaves_nothing(
    server: StreamingServer,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /ex")
    writer.close()
    await writer.wait_closed()
    await until_async(lambda: not server.sessions)
    assert await reader.read() == b""


async def test_what_follows_the_request_at_once_belongs_to_the_session(
    server: StreamingServer,
) -> None:
    path = urlsplit(server.port_forward_url(PortForwardRequest(sandbox_id="pod"))).path
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    ping = FrameEncoder().encode(Ping(1))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode() + ping)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    assert await reader.readexactly(len(ping)) == ping
    writer.close()
    await writer.wait_closed()
