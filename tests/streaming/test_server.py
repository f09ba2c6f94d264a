"""The server as a whole: its bounds, its end, TLS."""

import asyncio
import json
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.polling import until_async
from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    Handlers,
    PortForwardRequest,
    SessionLimits,
    StreamingServer,
)
from virtlet.streaming.spdy_frames import Ping

from .conftest import ServerMaker
from .fakes.handlers import FakeConsole, LoopbackDialer
from .fakes.runners import Waiting
from .fakes.spdy_client import Refused, SpdyClient
from .fakes.targets import echo, listening
from .fakes.websocket_client import WebSocketClient

pytestmark = pytest.mark.anyio
EXEC = ExecRequest(container_id="vm", command=("true",), stdout=True)
FORWARD = PortForwardRequest(sandbox_id="pod")
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


async def test_connections_over_the_limit_are_told_so_and_others_go_on(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(max_connections=2))
    async with (
        listening(echo) as port,
        await SpdyClient.connect(server.port_forward_url(FORWARD)) as one,
        await SpdyClient.connect(server.port_forward_url(FORWARD)),
    ):
        with pytest.raises(Refused, match="503 .*2 streaming connections are open on this node"):
            await SpdyClient.connect(server.port_forward_url(FORWARD))
        await one.open("error", port=str(port), requestID="0")
        data = await one.open("data", port=str(port), requestID="0")
        await data.send(b"still here", fin=True)
        assert await data.read_all() == b"still here"
    await until_async(lambda: not server.sessions)
    async with await SpdyClient.connect(server.port_forward_url(FORWARD)) as client:
        assert client.gone_away is None


async def _runs(server: StreamingServer, tls: ssl.SSLContext | None = None) -> bool:
    """Whether a command is served."""
    url = server.exec_url(ExecRequest(container_id="vm", command=("echo", "hello"), stdout=True))
    async with await SpdyClient.connect(url, V4, tls=tls) as client:
        error = await client.open("error")
        stdout = await client.open("stdout")
        done = json.loads(await error.read_all())["status"] == "Success"
        return await stdout.read_all() == b"hello\n" and done


async def _idle(server: StreamingServer, count: int, sent: bytes = b"") -> AsyncExitStack:
    """So many connections of somebody on the node who has no token."""
    stack = AsyncExitStack()
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        client.send(sent)
        await asyncio.sleep(0)
    return stack


@pytest.mark.parametrize("sent", [b"", b"GET /exec/", b"GET /exec/unknown HTTP/1.1\r\n\r\n"])
async def test_clients_without_a_token_keep_no_place_from_those_with_one(
    make_server: ServerMaker, sent: bytes
) -> None:
    """Hundreds of connections, and more come while commands are run."""
    server = await make_server(
        SessionLimits(head_seconds=300, linger_seconds=300, max_connections=4)
    )
    waiting = SessionLimits().max_waiting
    async with await _idle(server, 300, sent):
        for _ in range(5):
            assert await _runs(server)
            async with await _idle(server, waiting - 1, sent):
                assert await _runs(server)
        await until_async(lambda: server.sessions <= waiting)


async def test_a_client_without_a_token_is_let_go_soon(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(head_seconds=0.2, linger_seconds=0.2))
    async with await _idle(server, 20):
        await until_async(lambda: server.sessions)
        await until_async(lambda: not server.sessions)
    assert SessionLimits().head_seconds <= 5


async def test_a_token_is_not_spent_where_no_place_is_left(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(max_connections=1))
    url = server.port_forward_url(FORWARD)
    async with await SpdyClient.connect(server.port_forward_url(FORWARD)):
        with pytest.raises(Refused, match="503"):
            await SpdyClient.connect(url)
    await until_async(lambda: not server.sessions)
    async with await SpdyClient.connect(url) as client:
        assert client.gone_away is None


async def test_50_sessions_at_once_do_not_mix(server: StreamingServer) -> None:
    async def over_spdy(number: int) -> bool:
        name = f"vm-{number}"
        url = server.attach_url(AttachRequest(container_id=name, stdin=True, stdout=True))
        async with await SpdyClient.connect(url, V4) as client:
            error = await client.open("error")
            stdin = await client.open("stdin")
            stdout = await client.open("stdout")
            await stdin.send(f"session {number}\x1d".encode())
            wanted = f"console of {name}\nSESSION {number}".encode()
            done = json.loads(await error.read_all())["status"] == "Success"
            return await stdout.read_all() == wanted and done

    async def over_websocket(number: int) -> bool:
        name = f"vm-{number}"
        url = server.attach_url(AttachRequest(container_id=name, stdin=True, stdout=True))
        async with await WebSocketClient.connect(url, V5) as client:
            await client.send(0, f"session {number}\x1d".encode())
            await client.ended.wait()
            return client.channels[1] == f"console of {name}\nSESSION {number}".encode()

    sessions = (over_spdy(n) if n % 2 else over_websocket(n) for n in range(50))
    assert await asyncio.gather(*sessions) == [True] * 50


async def test_a_session_without_data_is_ended_though_pings_come(make_server: ServerMaker) -> None:
    waiting = Waiting()
    server = await make_server(SessionLimits(idle_seconds=2.0), exec=waiting)
    async with await SpdyClient.connect(server.exec_url(EXEC), V4) as client:
        error = await client.open("error")
        await client.open("stdout")
        for number in range(1, 9, 2):
            await asyncio.sleep(0.05)
            await client.send(Ping(number))
        status = json.loads(await error.read_all())
        await client.closed.wait()
        assert client.pings == [1, 3, 5, 7]
    assert status["message"].endswith("closed after 2 seconds without data")
    assert waiting.cancelled.is_set()


async def test_data_keeps_a_session_alive(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(idle_seconds=2.0))
    async with (
        listening(echo) as port,
        await SpdyClient.connect(server.port_forward_url(FORWARD)) as client,
    ):
        await client.open("error", port=str(port), requestID="0")
        data = await client.open("data", port=str(port), requestID="0")
        for _ in range(6):
            await asyncio.sleep(0.4)
            await data.send(b".")
        await data.read_until(b"......")
        await client.closed.wait()
        assert client.gone_away == 0


async def test_the_clients_of_a_stopping_server_are_told_so(make_server: ServerMaker) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    async with (
        await SpdyClient.connect(server.exec_url(EXEC), V4) as spdy,
        await WebSocketClient.connect(server.exec_url(EXEC), V5) as websocket,
        await SpdyClient.connect(server.port_forward_url(FORWARD)) as forward,
    ):
        error = await spdy.open("error")
        await spdy.open("stdout")
        await waiting.started.wait()
        await server.stop()
        assert "the streaming server is stopping" in json.loads(await error.read_all())["message"]
        await websocket.ended.wait()
        assert "is stopping" in json.loads(websocket.channels[3])["message"]
        await forward.closed.wait()
        assert forward.gone_away == 0
    assert server.sessions == 0
    assert waiting.cancelled.is_set()


async def test_a_stopping_server_does_not_wait_for_a_handler_that_does_not_end(
    make_server: ServerMaker, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    class Wedged(Waiting):
        async def run(self, request: object, streams: object) -> None:  # type: ignore[override]
            self.started.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    wedged = Wedged()
    server = await make_server(SessionLimits(linger_seconds=0.1), exec=wedged)
    async with await WebSocketClient.connect(server.exec_url(EXEC), V5):
        await wedged.started.wait()
        async with asyncio.timeout(5):
            await server.stop(seconds=0.1)
        assert "1 streaming sessions do not end" in caplog.text
        release.set()


async def test_a_stopped_server_takes_no_connections(server: StreamingServer) -> None:
    port = server.port
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_an_address_in_use_is_an_error(server: StreamingServer) -> None:
    handlers = Handlers(exec=Waiting(), attach=FakeConsole(), ports=LoopbackDialer())
    second = StreamingServer("127.0.0.1", server.port, handlers)
    with pytest.raises(OSError, match="in use"):
        await second.start()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return place


async def test_tls_carries_sessions_to_their_end(
    make_server: ServerMaker, certificate: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = await make_server(tls=context)
    url = server.exec_url(
        ExecRequest(container_id="vm", command=("seq", "1", "300000"), stdout=True)
    )
    assert url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with await SpdyClient.connect(url, V4, tls=trust) as client:
        error = await client.open("error")
        stdout = await client.open("stdout")
        assert (await stdout.read_all()).endswith(b"\n299999\n300000\n")
        assert json.loads(await error.read_all())["status"] == "Success"


async def test_a_client_that_vanishes_from_tls_is_noticed(
    make_server: ServerMaker, certificate: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    waiting = Waiting()
    server = await make_server(exec=waiting, tls=context)
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with await SpdyClient.connect(server.exec_url(EXEC), V4, tls=trust) as client:
        await client.open("error")
        await client.open("stdout")
        await waiting.started.wait()
    async with asyncio.timeout(5):
        await waiting.cancelled.wait()


async def test_a_plain_client_of_tls_is_let_go(make_server: ServerMaker, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = await make_server(SessionLimits(head_seconds=0.2), tls=context)
    for octets in (b"GET / HTTP/1.1\r\n\r\n", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(octets)
        async with asyncio.timeout(5):
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.transport.abort()
    await until_async(lambda: not server.sessions)


async def test_clients_that_begin_no_tls_keep_no_place(
    make_server: ServerMaker, certificate: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = await make_server(SessionLimits(head_seconds=300), tls=context)
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with await _idle(server, 300):
        assert await _runs(server, trust)
