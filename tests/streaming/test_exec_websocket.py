"""Exec and attach over WebSocket, message by message."""

import asyncio
import json

import pytest
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from tests.polling import until_async
from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    SessionLimits,
    StreamingServer,
    TerminalSize,
)

from .conftest import ServerMaker
from .fakes.runners import Failing, Sizes, Waiting
from .fakes.websocket_client import WebSocketClient

pytestmark = pytest.mark.anyio
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


def request(*command: str, **streams: bool) -> ExecRequest:
    wanted = {"stdout": True, "stderr": True, **streams}
    return ExecRequest(container_id="vm-1", command=command, **wanted)


@pytest.mark.parametrize("protocol", [V5, V4, "v4.base64.channel.k8s.io"])
async def test_output_and_exit_code_reach_the_client(
    server: StreamingServer, protocol: str
) -> None:
    url = server.exec_url(request("sh", "-c", "echo out; echo err >&2; exit 7"))
    async with await WebSocketClient.connect(url, protocol) as client:
        assert client.protocol == protocol
        await client.ended.wait()
        assert client.channels[STDOUT] == b"out\n"
        assert client.channels[STDERR] == b"err\n"
        status = json.loads(client.channels[ERROR])
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
        assert client.close_code == 1000


@pytest.mark.parametrize("protocol", ["channel.k8s.io", "base64.channel.k8s.io", ""])
async def test_before_v4_the_error_channel_is_plain_text(
    server: StreamingServer, protocol: str
) -> None:
    url = server.exec_url(request("sh", "-c", "echo out; exit 7"))
    async with await WebSocketClient.connect(url, *filter(None, [protocol])) as client:
        assert client.protocol == protocol
        await client.ended.wait()
        assert client.channels[STDOUT] == b"out\n"
        assert (
            client.channels[ERROR] == b"command terminated with non-zero exit code: exit status 7"
        )


async def test_the_close_channel_of_v5_ends_stdin(server: StreamingServer) -> None:
    url = server.exec_url(request("sh", "-c", "wc -c; echo done", stdin=True))
    async with await WebSocketClient.connect(url, V5) as client:
        for _ in range(100):
            await client.send(STDIN, b"x" * 10_000)
        await client.close_channel(STDIN)
        await client.send(STDIN, b"too late")
        await client.ended.wait()
        assert client.channels[STDOUT] == b"1000000\ndone\n"
        assert json.loads(client.channels[ERROR])["status"] == "Success"


async def test_a_long_message_in_parts_is_one_channels_data(server: StreamingServer) -> None:
    url = server.exec_url(request("wc", "-c", stdin=True))
    async with await WebSocketClient.connect(url, V5) as client:
        await client.event(BytesMessage(data=b"", message_finished=False))
        await client.event(BytesMessage(data=b"\x00", message_finished=False))
        for _ in range(30):
            await client.event(BytesMessage(data=b"\x01" * 100_000, message_finished=False))
        await client.event(BytesMessage(data=b"", message_finished=True))
        await client.close_channel(STDIN)
        await client.ended.wait()
        assert client.channels[STDOUT] == b"3000000\n"


async def test_text_messages_carry_channels_too(server: StreamingServer) -> None:
    url = server.exec_url(request("cat", stdin=True))
    async with await WebSocketClient.connect(url, V5) as client:
        await client.event(TextMessage(data="\x00grüße"))
        assert await client.read_until(STDOUT, "grüße".encode())
        await client.close_channel(STDIN)
        await client.ended.wait()


async def test_pings_are_answered(make_server: ServerMaker) -> None:
    server = await make_server(exec=Waiting())
    async with await WebSocketClient.connect(server.exec_url(request("true")), V5) as client:
        await client.event(Ping(payload=b"are you there"))
        await until_async(lambda: client.pongs)
        assert client.pongs == [b"are you there"]


async def test_a_client_with_unread_stdin_hears_that_the_server_lives(
    make_server: ServerMaker,
) -> None:
    waiting = Waiting()
    server = await make_server(SessionLimits(receive_buffer=65536), exec=waiting)
    async with await WebSocketClient.connect(
        server.exec_url(request("true", stdin=True)), V5
    ) as client:
        for _ in range(3):
            await client.send(STDIN, bytes(65536))
        await until_async(lambda: client.pongs)
        waiting.release.set()
        await client.ended.wait()
        assert json.loads(client.channels[ERROR])["status"] == "Success"


async def test_a_client_that_vanishes_behind_unread_data_is_noticed(
    make_server: ServerMaker,
) -> None:
    waiting = Waiting()
    server = await make_server(SessionLimits(receive_buffer=65536), exec=waiting)
    async with await WebSocketClient.connect(
        server.exec_url(request("true", stdin=True)), V5
    ) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await client.send(STDIN, bytes(500_000))
    async with asyncio.timeout(10):
        await waiting.cancelled.wait()


async def test_attach_follows_the_terminals_size(make_server: ServerMaker) -> None:
    sizes = Sizes()
    server = await make_server(exec=sizes)
    async with await WebSocketClient.connect(
        server.exec_url(request("top", tty=True, stderr=False, stdin=True)), V5
    ) as client:
        await client.send(RESIZE, b'{"Width":80,"Height":24}\n')
        await client.read_until(STDOUT, b"80x24")
        await client.close_channel(RESIZE)
        await client.ended.wait()
    assert sizes.seen == [TerminalSize(80, 24)]


async def test_attach_ends_with_success_when_the_client_detaches(server: StreamingServer) -> None:
    url = server.attach_url(AttachRequest(container_id="vm-1", stdin=True, stdout=True, tty=True))
    async with await WebSocketClient.connect(url, V4) as client:
        await client.read_until(STDOUT, b"console of vm-1\n")
        await client.send(STDIN, b"hello\x1d")
        await client.ended.wait()
        assert client.channels[STDOUT].endswith(b"HELLO")
        assert json.loads(client.channels[ERROR])["status"] == "Success"


async def test_a_runners_error_is_told_in_its_words(make_server: ServerMaker) -> None:
    server = await make_server(exec=Failing())
    async with await WebSocketClient.connect(server.exec_url(request("true")), V5) as client:
        await client.ended.wait()
        assert "the guest has no agent; install" in json.loads(client.channels[ERROR])["message"]


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"\x82\x02\x00x", "not a WebSocket frame of a client"),  # unmasked
        (b"\xf2\x80\x00\x00\x00\x00", "not a WebSocket frame of a client"),  # reserved bits
        (b"\x82\x82\x00\x00\x00\x00\x09x", "a message for channel 9 of 5"),
        (b"\x81\x82\x00\x00\x00\x00\xc3\x28", "not a WebSocket frame of a client"),  # not UTF-8
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_what_was_wrong(
    make_server: ServerMaker, octets: bytes, words: str
) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    url = server.exec_url(request("true", stdin=True))
    async with await WebSocketClient.connect(url, V5) as client:
        await waiting.started.wait()
        client.writer.write(octets)
        await client.ended.wait()
        assert words in json.loads(client.channels[ERROR])["message"]
        assert client.close_code == 1002
    assert waiting.cancelled.is_set()


@pytest.mark.parametrize("text", ["0not base64!", "0" + "A" * 1_500_000])
async def test_base64_messages_are_checked(make_server: ServerMaker, text: str) -> None:
    server = await make_server(exec=Waiting())
    url = server.exec_url(request("true", stdin=True))
    async with await WebSocketClient.connect(url, "v4.base64.channel.k8s.io") as client:
        await client.event(TextMessage(data=text))
        await client.ended.wait()
        assert "base64" in json.loads(client.channels[ERROR])["message"]


async def test_a_client_that_closes_cancels_its_runner(make_server: ServerMaker) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    async with await WebSocketClient.connect(server.exec_url(request("true")), V5) as client:
        await waiting.started.wait()
        await client.event(CloseConnection(code=1000))
        await client.ended.wait()
        assert client.close_code == 1000
        async with asyncio.timeout(5):
            await waiting.cancelled.wait()
