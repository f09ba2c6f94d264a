"""Exec and attach over SPDY, frame by frame."""

import asyncio
import hashlib
import json
from typing import Any

import pytest

from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    SessionLimits,
    StreamingServer,
    TerminalSize,
)
from virtlet.streaming.spdy_frames import GoAway, Ping, RstStream, SynReply, WindowUpdate

from .conftest import ServerMaker
from .fakes.handlers import LocalExec
from .fakes.runners import Failing, Flooding, Sizes, Waiting
from .fakes.spdy_client import ClientStream, SpdyClient

pytestmark = pytest.mark.anyio
V4 = "v4.channel.k8s.io"


def request(*command: str, **streams: bool) -> ExecRequest:
    wanted = {"stdout": True, "stderr": True, **streams}
    return ExecRequest(container_id="vm-1", command=command, **wanted)


async def status_of(error: ClientStream) -> dict[str, Any]:
    document = json.loads(await error.read_all())
    assert isinstance(document, dict)
    return document


async def test_output_and_exit_code_reach_the_client(server: StreamingServer) -> None:
    url = server.exec_url(request("sh", "-c", "echo out; echo err >&2; exit 7"))
    async with await SpdyClient.connect(url, V4) as client:
        error = await client.open("error")
        stdout = await client.open("stdout")
        stderr = await client.open("stderr")
        assert await stdout.read_all() == b"out\n"
        assert await stderr.read_all() == b"err\n"
        assert await status_of(error) == {
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: exit status 7",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        }
        assert client.gone_away == 0


async def test_stdin_ends_where_the_client_ends_it(server: StreamingServer) -> None:
    url = server.exec_url(request("sh", "-c", "wc -c; echo done", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        error = await client.open("error")
        stdin = await client.open("stdin")
        stdout = await client.open("stdout")
        for _ in range(100):
            await stdin.send(b"x" * 10_000)
        await stdin.close()
        assert await stdout.read_all() == b"1000000\ndone\n"
        assert await status_of(error) == {"metadata": {}, "status": "Success"}


async def test_one_frame_of_megabytes_passes_in_parts(server: StreamingServer) -> None:
    url = server.exec_url(request("sha256sum", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        await client.open("error")
        stdin = await client.open("stdin")
        stdout = await client.open("stdout")
        await stdin.send(bytes(10_000_000), fin=True)
        wanted = hashlib.sha256(bytes(10_000_000)).hexdigest()
        assert (await stdout.read_all()).split()[0].decode() == wanted


@pytest.mark.parametrize(
    "protocol", ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""]
)
async def test_before_v4_the_error_stream_is_plain_text(
    server: StreamingServer, protocol: str
) -> None:
    for command, text in [("true", b""), ("false", b"command terminated with non-zero exit code")]:
        url = server.exec_url(request(command))
        async with await SpdyClient.connect(url, *filter(None, [protocol])) as client:
            assert client.protocol == protocol
            error = await client.open("error")
            await client.open("stdout")
            await client.open("stderr")
            assert (await error.read_all()).startswith(text)


async def test_a_runners_error_is_told_in_its_words(make_server: ServerMaker) -> None:
    server = await make_server(exec=Failing())
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        error = await client.open("error")
        await client.open("stdout")
        await client.open("stderr")
        status = await status_of(error)
    assert status["reason"] == "InternalError"
    assert status["message"] == (
        "Internal error occurred: error executing command in container vm-1: "
        "the guest has no agent; install qemu-guest-agent in it"
    )


async def test_a_runners_bug_is_logged_and_not_told(
    make_server: ServerMaker, caplog: pytest.LogCaptureFixture
) -> None:
    server = await make_server(exec=Failing(RuntimeError("secret detail")))
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        error = await client.open("error")
        await client.open("stdout")
        await client.open("stderr")
        status = await status_of(error)
    assert "an internal error; see the log" in status["message"]
    assert "secret detail" not in str(status)
    assert "secret detail" in caplog.text


async def test_attach_ends_with_success_when_the_client_detaches(server: StreamingServer) -> None:
    url = server.attach_url(AttachRequest(container_id="vm-1", stdin=True, stdout=True, tty=True))
    async with await SpdyClient.connect(url, V4) as client:
        error = await client.open("error")
        stdin = await client.open("stdin")
        stdout = await client.open("stdout")
        await client.open("resize")
        await stdout.read_until(b"console of vm-1\n")
        await stdin.send(b"hello\x1d")
        assert (await stdout.read_all()).endswith(b"HELLO")
        assert await status_of(error) == {"metadata": {}, "status": "Success"}


async def test_sizes_reach_the_runner_the_newest_where_several_wait(
    make_server: ServerMaker,
) -> None:
    sizes = Sizes()
    server = await make_server(exec=sizes)
    async with await SpdyClient.connect(
        server.exec_url(request("top", tty=True, stderr=False)), V4
    ) as client:
        error = await client.open("error")
        stdout = await client.open("stdout")
        resize = await client.open("resize")
        await resize.send(b'{"Width":80,"He')
        await resize.send(b'ight":24}\n')
        await stdout.read_until(b"80x24")
        await resize.send(b'{"Width":1,"Height":1}\n{"Width":132,"Height":50}\n{"Wid')
        await stdout.read_until(b"132x50")
        await resize.close()
        assert (await status_of(error))["status"] == "Success"
    assert sizes.seen == [TerminalSize(80, 24), TerminalSize(132, 50)]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense",
        b"   x" + b" " * 100,
        b'{"Width":"80","Height":24}',
        b'{"Width":70000,"Height":1}',
        b"{}",
        b"[1]}",
        b'{"Width":' + b"1" * 2000,
        b'{"Width":' + b"[" * 5000 + b"}",
    ],
)
async def test_sizes_that_are_none_end_the_sizes_alone(
    make_server: ServerMaker, nonsense: bytes
) -> None:
    server = await make_server(exec=Sizes())
    async with await SpdyClient.connect(
        server.exec_url(request("top", tty=True, stderr=False)), V4
    ) as client:
        error = await client.open("error")
        await client.open("stdout")
        resize = await client.open("resize")
        await resize.send(nonsense)
        assert (await status_of(error))["status"] == "Success"


async def test_streams_that_the_session_has_not_are_reset(server: StreamingServer) -> None:
    url = server.exec_url(request("cat", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        await client.open("error")
        stdin = await client.open("stdin")
        stdout = await client.open("stdout")
        for kind in ("stderr", "resize", "stdout", "other"):
            stream = await client.open(kind)
            await stream.ended.wait()
            assert stream.reset_status == 3
        await stdin.send(b"still here", fin=True)
        assert await stdout.read_all() == b"still here"


async def test_a_client_that_opens_too_few_streams_is_told_which(make_server: ServerMaker) -> None:
    server = await make_server(SessionLimits(stream_creation_seconds=0.1))
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        error = await client.open("error")
        await client.open("stderr")
        status = await status_of(error)
    assert "the client did not open its stdout stream within 0.1 seconds" in status["message"]


async def test_a_client_that_breaks_the_protocol_is_told_what_was_wrong(
    make_server: ServerMaker,
) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        error = await client.open("error")
        await client.open("stdout")
        await client.open("stderr")
        await waiting.started.wait()
        client.writer.write(b"\x80\x02\x00\x01\x00\x00\x00\x00")
        status = await status_of(error)
        await client.closed.wait()
        assert client.gone_away == 1
    assert "a control frame of SPDY version 2; this server speaks 3" in status["message"]
    assert waiting.cancelled.is_set()


@pytest.mark.parametrize("number", [2, 5, 3])
async def test_stream_numbers_are_odd_and_grow(make_server: ServerMaker, number: int) -> None:
    server = await make_server(exec=Waiting())
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        error = await client.open("error")
        await client.open("stdout")
        await client.open("stderr")
        client._next_id = number
        await client.open("stdin")
        await client.closed.wait()
        assert client.gone_away == 1
        assert b"odd and growing numbers" in error.received


async def test_pings_are_answered_and_foreign_frames_ignored(server: StreamingServer) -> None:
    url = server.exec_url(request("cat", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        await client.open("error")
        stdin = await client.open("stdin")
        stdout = await client.open("stdout")
        await client.send(Ping(7))
        await client.send(Ping(2))
        await client.send(WindowUpdate(3, 1 << 20))
        await client.send(SynReply(3))
        await client.send(RstStream(99, 5))
        await client.send(GoAway(0, 0))
        client.writer.write(b"\x80\x03\x00\x63\x00\x00\x00\x02hi")  # a type of the future
        await stdin.send(b"still here", fin=True)
        assert await stdout.read_all() == b"still here"
        assert client.pings == [7]


async def test_data_after_its_end_resets_the_stream_alone(make_server: ServerMaker) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    url = server.exec_url(request("true", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        error = await client.open("error")
        stdin = await client.open("stdin")
        await client.open("stdout")
        await stdin.close()
        await stdin.send(b"more")
        await stdin.ended.wait()
        assert stdin.reset_status == 9
        waiting.release.set()
        assert (await status_of(error))["status"] == "Success"


async def test_a_client_that_vanishes_cancels_its_runner(make_server: ServerMaker) -> None:
    waiting = Waiting()
    server = await make_server(exec=waiting)
    async with await SpdyClient.connect(server.exec_url(request("true")), V4) as client:
        for kind in ("error", "stdout", "stderr"):
            await client.open(kind)
        await waiting.started.wait()
    async with asyncio.timeout(5):
        await waiting.cancelled.wait()


async def test_a_client_that_vanishes_behind_unread_data_is_noticed(
    make_server: ServerMaker,
) -> None:
    waiting = Waiting()
    server = await make_server(SessionLimits(receive_buffer=65536), exec=waiting)
    url = server.exec_url(request("true", stdin=True, stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        await client.open("error")
        stdin = await client.open("stdin")
        await client.open("stdout")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await stdin.send(bytes(15_000_000))
                await stdin.send(bytes(15_000_000))
    async with asyncio.timeout(10):
        await waiting.cancelled.wait()


async def test_a_client_that_does_not_read_holds_its_runner_back(make_server: ServerMaker) -> None:
    flooding = Flooding()
    server = await make_server(exec=flooding)
    async with await SpdyClient.connect(
        server.exec_url(request("yes", stderr=False)), V4
    ) as client:
        await client.open("error")
        await client.open("stdout")
        client.pause()
        await asyncio.sleep(0.3)
        taken = flooding.taken
        await asyncio.sleep(0.3)
        assert flooding.taken == taken
        assert taken < 20_000_000
    async with asyncio.timeout(5):
        await flooding.gone.wait()


async def test_a_slow_client_gets_all_output_after_the_command_ended(
    make_server: ServerMaker, runner: LocalExec
) -> None:
    server = await make_server(SessionLimits(linger_seconds=0.2), exec=runner)
    url = server.exec_url(request("head", "-c", "3000000", "/dev/zero", stderr=False))
    async with await SpdyClient.connect(url, V4) as client:
        error = await client.open("error")
        stdout = await client.open("stdout")
        client.pause()
        await asyncio.sleep(1)
        client.resume()
        assert len(await stdout.read_all()) == 3_000_000
        assert (await status_of(error))["status"] == "Success"
