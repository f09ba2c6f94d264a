"""Whatever a client sends after its upgrade, the server and the other sessions go on."""

import asyncio
import struct
from collections.abc import Awaitable, Callable

import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.polling import until_async
from virtlet.streaming import (
    ExecRequest,
    Handlers,
    PortForwardRequest,
    SessionLimits,
    StreamingServer,
)
from virtlet.streaming.spdy_frames import FrameEncoder, SynStream

from .fakes.handlers import FakeConsole, LoopbackDialer
from .fakes.runners import Waiting
from .fakes.spdy_client import SpdyClient, upgrade
from .fakes.targets import echo, listening

LIMITS = SessionLimits(linger_seconds=0.2, dial_seconds=0.2, stream_creation_seconds=0.2)
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Connect = Callable[[StreamingServer, int], Awaitable[asyncio.StreamWriter]]


def _opened(port: int) -> bytes:
    encoder = FrameEncoder()
    return b"".join(
        encoder.encode(SynStream(number, {"streamtype": kind, "port": str(port), "requestid": "0"}))
        for number, kind in ((1, "error"), (3, "data"))
    )


# Frames whose heads are right and whose bodies are not, beside plain noise.
spdy_noise = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, flags, body: struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body,
        st.integers(0, 12),
        st.integers(0, 255),
        st.binary(max_size=60),
    ),
    st.builds(
        lambda stream, flags, body: struct.pack(">II", stream, flags << 24 | len(body)) + body,
        st.sampled_from([0, 1, 2, 3, 5]),
        st.integers(0, 3),
        st.binary(max_size=60),
    ),
)
websocket_noise = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda opcode, fin, body: bytes([fin << 7 | opcode, 0x80 | len(body)]) + bytes(4) + body,
        st.integers(0, 15),
        st.booleans(),
        st.binary(max_size=100),
    ),
)


async def _spdy_forward(server: StreamingServer, port: int) -> asyncio.StreamWriter:
    url = server.port_forward_url(PortForwardRequest(sandbox_id="pod"))
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    _, writer, _ = await upgrade(url, headers)
    writer.write(_opened(port))
    return writer


async def _spdy_exec(server: StreamingServer, _port: int) -> asyncio.StreamWriter:
    request = ExecRequest(container_id="vm", command=("x",), stdin=True)
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    _, writer, _ = await upgrade(server.exec_url(request), headers)
    return writer


def _websocket(kind: str, protocol: str) -> Connect:
    async def connect(server: StreamingServer, port: int) -> asyncio.StreamWriter:
        if kind == "exec":
            request = ExecRequest(container_id="vm", command=("x",), stdin=True, stdout=True)
            url = server.exec_url(request)
        else:
            url = server.port_forward_url(PortForwardRequest(sandbox_id="pod", ports=(port,)))
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol": protocol,
        }
        _, writer, _ = await upgrade(url, headers, "GET")
        return writer

    return connect


async def _survives(connect: Connect, noise: list[bytes]) -> None:
    handlers = Handlers(exec=Waiting(), attach=FakeConsole(), ports=LoopbackDialer())
    server = StreamingServer("127.0.0.1", 0, handlers, limits=LIMITS)
    await server.start()
    try:
        async with listening(echo) as port:
            url = server.port_forward_url(PortForwardRequest(sandbox_id="pod"))
            async with await SpdyClient.connect(url, "portforward.k8s.io") as bystander:
                headers = {"port": str(port), "requestID": "0"}
                await bystander.open("error", **headers)
                stream = await bystander.open("data", **headers)
                writer = await connect(server, port)
                for piece in noise:
                    writer.write(piece)
                    await asyncio.sleep(0)
                await stream.send(b"still here", fin=True)
                assert await stream.read_all() == b"still here"
                writer.transport.abort()
            await until_async(lambda: not server.sessions)
    finally:
        await server.stop()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []


@FUZZ
@given(st.sampled_from([_spdy_forward, _spdy_exec]), st.lists(spdy_noise, max_size=6))
def test_no_bytes_on_spdy_disturb_the_server(connect: Connect, noise: list[bytes]) -> None:
    uvloop.run(_survives(connect, noise))


@FUZZ
@given(
    st.sampled_from(
        [
            _websocket("exec", "v5.channel.k8s.io"),
            _websocket("exec", "v4.base64.channel.k8s.io"),
            _websocket("portforward", "v4.channel.k8s.io"),
            _websocket("portforward", "SPDY/3.1+portforward.k8s.io"),
        ]
    ),
    st.lists(websocket_noise, max_size=6),
)
def test_no_bytes_on_websocket_disturb_the_server(connect: Connect, noise: list[bytes]) -> None:
    uvloop.run(_survives(connect, noise))


@FUZZ
@given(st.binary(max_size=300))
def test_no_bytes_before_the_upgrade_disturb_the_server(noise: bytes) -> None:
    async def connect(server: StreamingServer, _port: int) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        return writer

    uvloop.run(_survives(connect, [noise]))
