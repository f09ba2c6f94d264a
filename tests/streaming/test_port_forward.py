"""Port-forward over SPDY, plain and tunnelled, and over the old WebSocket protocol."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.polling import until_async
from virtlet.errors import FailedPrecondition
from virtlet.streaming import PortForwardRequest, SessionLimits, StreamingServer
from virtlet.streaming.spdy_frames import DataFrame, RstStream

from .conftest import ServerMaker
from .fakes.spdy_client import ClientStream, SpdyClient
from .fakes.targets import digest, echo, listening, reset, sender, sleep
from .fakes.websocket_client import WebSocketClient

pytestmark = pytest.mark.anyio
REQUEST = PortForwardRequest(sandbox_id="pod-1")


@asynccontextmanager
async def client_of(server: StreamingServer) -> AsyncIterator[SpdyClient]:
    url = server.port_forward_url(REQUEST)
    async with await SpdyClient.connect(url, "portforward.k8s.io") as client:
        yield client


async def pair(client: SpdyClient, port: int, number: int = 0) -> tuple[ClientStream, ClientStream]:
    """Open a connection's streams as kubectl does; return data and error."""
    headers = {"port": str(port), "requestID": str(number)}
    error = await client.open("error", **headers)
    await error.close()
    return await client.open("data", **headers), error


async def gone(server: StreamingServer) -> None:
    await until_async(lambda: not server.sessions)


async def test_both_ways_end_on_their_own(server: StreamingServer) -> None:
    text = os.urandom(300_000)
    async with listening(echo) as port, client_of(server) as client:
        data, error = await pair(client, port)
        await data.send(text)
        await data.close()
        assert await data.read_all() == text
        assert await error.read_all() == b""


async def test_a_client_may_go_on_after_the_pod_has_ended(server: StreamingServer) -> None:
    got = bytearray()

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        got.extend(await reader.read(-1))

    async with listening(quiet) as port, client_of(server) as client:
        data, error = await pair(client, port)
        assert await data.read_all() == b""
        assert await error.read_all() == b""
        await data.send(b"late ")
        await data.send(b"words", fin=True)
        await until_async(lambda: got == b"late words")


async def test_a_connection_that_only_the_client_keeps_open_is_given_up(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(half_closed_seconds=0.1))
    async with listening(sender(b"all")) as port, client_of(server) as client:
        data, error = await pair(client, port)
        assert await error.read_all() == b""
        assert data.received == b"all"
        await until_async(lambda: data.reset_status)
        assert data.reset_status == 5


async def test_streams_are_done_with_whether_the_client_ends_them_or_not(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(max_streams=2, half_closed_seconds=0.05))
    async with listening(sender(b"all")) as port, client_of(server) as client:
        for number in range(5):
            headers = {"port": str(port), "requestID": str(number)}
            await client.open("error", **headers)
            data = await client.open("data", **headers)
            await data.ended.wait()
            assert data.received == b"all"
            await until_async(lambda data=data: data.reset_status)  # type: ignore[misc]


async def test_50_connections_of_one_client_do_not_mix(server: StreamingServer) -> None:
    async def talk(client: SpdyClient, port: int, number: int) -> bool:
        text = f"connection {number} ".encode() * 10_000
        data, error = await pair(client, port, number)
        for start in range(0, len(text), 20_000):
            await data.send(text[start : start + 20_000])
            await asyncio.sleep(0)
        await data.close()
        return await data.read_all() == text and await error.read_all() == b""

    async with listening(echo) as port, client_of(server) as client:
        answers = await asyncio.gather(*(talk(client, port, number) for number in range(50)))
    assert answers == [True] * 50


async def test_a_port_that_refuses_is_named_and_others_go_on(server: StreamingServer) -> None:
    async with listening(echo) as refused:
        pass
    async with listening(echo) as port, client_of(server) as client:
        data, error = await pair(client, refused)
        assert (await error.read_all()).decode() == (
            f"error forwarding port {refused} to pod pod-1: connection refused"
        )
        assert await data.read_all() == b""
        data, _ = await pair(client, port, 1)
        await data.send(b"still here", fin=True)
        assert await data.read_all() == b"still here"


class FailingDialer:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FailedPrecondition("the VM has no network"), "pod-1: the VM has no network"),
        (OSError(113, "x"), "pod-1: no route to host"),
        (RuntimeError("secret detail"), "pod-1: an internal error; see the log"),
    ],
)
async def test_a_dialers_error_is_told(
    make_server: ServerMaker, error: Exception, words: str
) -> None:
    server = await make_server(ports=FailingDialer(error))
    async with client_of(server) as client:
        _, stream = await pair(client, 80)
        message = (await stream.read_all()).decode()
    assert message.startswith("error forwarding port 80 to pod ")
    assert words in message
    assert "secret" not in message


class SlowDialer:
    def __init__(self) -> None:
        self.cancelled = False

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("an hour passed")


async def test_a_pod_that_does_not_answer_is_given_up(make_server: ServerMaker) -> None:
    dialer = SlowDialer()
    server = await make_server(SessionLimits(dial_seconds=0.1), ports=dialer)
    async with client_of(server) as client:
        _, error = await pair(client, 80)
        assert (await error.read_all()).endswith(b"no answer within 0.1 seconds")
    assert dialer.cancelled


async def test_a_reset_by_the_pod_resets_its_stream_alone(server: StreamingServer) -> None:
    async with listening(reset) as rude, listening(echo) as port, client_of(server) as client:
        data, error = await pair(client, rude)
        await data.send(b"x")
        await data.ended.wait()
        assert data.reset_status == 5
        assert await error.read_all() == b""
        data, _ = await pair(client, port, 1)
        await data.send(b"still here", fin=True)
        assert await data.read_all() == b"still here"


async def test_a_reset_by_the_client_closes_the_pods_connection(server: StreamingServer) -> None:
    closed = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await asyncio.gather(reader.read(-1), return_exceptions=True)
        closed.set()

    async with listening(watch) as port, client_of(server) as client:
        data, error = await pair(client, port)
        await data.read_until(b"hello")
        await data.reset()
        assert await error.read_all() == b""
        async with asyncio.timeout(5):
            await closed.wait()


async def test_a_reset_by_the_client_ends_an_upload_that_the_pod_does_not_read(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(receive_buffer=1 << 30))
    async with listening(sleep) as port, listening(echo) as other, client_of(server) as client:
        data, error = await pair(client, port)
        for _ in range(3):
            client.send_later(DataFrame(data.stream_id, bytes(8_000_000)))
        client.send_later(RstStream(data.stream_id, 5))
        assert await error.read_all() == b""
        data, _ = await pair(client, other, 1)
        await data.send(b"still here", fin=True)
        assert await data.read_all() == b"still here"


async def test_an_answer_to_an_upload_that_the_pod_refuses_arrives(server: StreamingServer) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"too large")
        await writer.drain()

    async with listening(refuse) as port, client_of(server) as client:
        data, error = await pair(client, port)
        for _ in range(3):
            client.send_later(DataFrame(data.stream_id, bytes(8_000_000)))
        assert (await data.read_all()).startswith(b"too large")
        assert await error.read_all() == b""


async def test_a_client_that_vanishes_closes_all_its_connections(server: StreamingServer) -> None:
    open_now: set[int] = set()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readline())
        open_now.add(number)
        writer.write(b"ready")
        await asyncio.gather(reader.read(-1), return_exceptions=True)
        open_now.discard(number)

    async with listening(watch) as port:
        async with client_of(server) as client:
            for number in range(20):
                data, _ = await pair(client, port, number)
                await data.send(f"{number}\n".encode())
                await data.read_until(b"ready")
            assert len(open_now) == 20
        await gone(server)
        await until_async(lambda: not open_now)


async def test_a_pod_that_reads_nothing_is_cut_off_for_the_sake_of_others(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(stall_seconds=0.3))
    async with listening(sleep) as stuck, listening(echo) as port, client_of(server) as client:
        other, _ = await pair(client, port, 1)
        data, error = await pair(client, stuck)
        for _ in range(4):  # more than the kernel's buffers take
            client.send_later(DataFrame(data.stream_id, bytes(16_000_000)))
        client.send_later(DataFrame(other.stream_id, b"still here", fin=True))
        assert await other.read_all() == b"still here"
        assert data.reset_status == 7
        assert await error.read_all() == b""


async def test_a_pod_that_reads_nothing_gets_longer_while_it_is_alone(
    make_server: ServerMaker,
) -> None:
    server = await make_server(SessionLimits(stall_seconds=0.2))
    release = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await digest(reader, writer)

    async with listening(late) as port, listening(sleep) as stuck, client_of(server) as client:
        data, _ = await pair(client, port)
        for number in range(4):
            client.send_later(DataFrame(data.stream_id, bytes(16_000_000), fin=number == 3))
        await asyncio.sleep(0.8)
        release.set()
        assert len(await data.read_all()) == 64
        data, _ = await pair(client, stuck, 1)
        for _ in range(4):
            client.send_later(DataFrame(data.stream_id, bytes(16_000_000)))
        await data.ended.wait()
        assert data.reset_status == 7


@pytest.mark.parametrize(
    "headers",
    [
        {"port": "0"},
        {"port": "65536"},
        {"port": "http"},
        {"port": "٣"},
        {"port": "9" * 5000},
        {"port": "-1"},
        {},
    ],
)
async def test_a_stream_without_a_port_is_refused(
    server: StreamingServer, headers: dict[str, str]
) -> None:
    headers = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    async with client_of(server) as client:
        stream = await client.open("data", requestID="0", **headers)
        await stream.ended.wait()
        assert stream.reset_status == 3


async def test_streams_of_other_kinds_and_doubles_are_refused(server: StreamingServer) -> None:
    async with client_of(server) as client:
        for kind, number in [("stdin", 0), ("data", 1), ("data", 1)]:
            stream = await client.open(kind, port="80", requestID=str(number))
            if number:
                continue
            await stream.ended.wait()
            assert stream.reset_status == 3
        await stream.ended.wait()
        assert stream.reset_status == 3


async def test_half_a_pair_is_given_up(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(stream_creation_seconds=0.1))
    async with client_of(server) as client:
        error = await client.open("error", port="80", requestID="0")
        assert await error.read_all() == b"no data stream came for request 0"
        data = await client.open("data", port="80", requestID="1")
        await data.ended.wait()
        assert data.reset_status == 5


async def test_old_clients_pair_by_stream_numbers(server: StreamingServer) -> None:
    async with listening(echo) as port, client_of(server) as client:
        for _ in range(2):
            await client.open("error", port=str(port))
            data = await client.open("data", port=str(port))
            await data.send(b"hello", fin=True)
            assert await data.read_all() == b"hello"


async def test_streams_over_the_limit_are_refused(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(max_streams=4))
    async with listening(echo) as port, client_of(server) as client:
        pairs = [await pair(client, port, number) for number in range(2)]
        extra = await client.open("error", port=str(port), requestID="9")
        await extra.ended.wait()
        assert extra.reset_status == 3
        for data, error in pairs:
            await data.send(b"hello", fin=True)
            assert await data.read_all() == b"hello"
            await error.read_all()
        data, _ = await pair(client, port, 10)
        await data.send(b"room again", fin=True)
        assert await data.read_all() == b"room again"


# The old WebSocket protocol.


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
async def test_the_old_websocket_protocol_carries_the_ports_of_its_url(
    server: StreamingServer, protocol: str
) -> None:
    async with listening(echo) as one, listening(echo) as two:
        request = PortForwardRequest(sandbox_id="pod-1", ports=(one, two))
        url = server.port_forward_url(request)
        async with await WebSocketClient.connect(url, *filter(None, [protocol])) as client:
            for channel, port in [(0, one), (2, two)]:
                head = struct.pack("<H", port)
                await client.send(channel, f"to {channel}".encode())
                got = await client.read_until(channel, f"to {channel}".encode())
                assert got == head + f"to {channel}".encode()
                assert client.channels[channel + 1] == head


async def test_the_old_websocket_protocol_names_a_port_that_refuses(
    server: StreamingServer,
) -> None:
    async with listening(echo) as refused:
        pass
    request = PortForwardRequest(sandbox_id="pod-1", ports=(refused,))
    url = server.port_forward_url(request)
    async with await WebSocketClient.connect(url, "v4.channel.k8s.io") as client:
        await client.ended.wait()
        assert client.channels[1][2:].endswith(b"connection refused")
        assert client.close_code == 1000
