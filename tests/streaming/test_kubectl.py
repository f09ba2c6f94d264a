"""Debian's kubectl, in both its framings, through the stand-in API server."""

import asyncio
import fcntl
import hashlib
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.polling import until_async
from virtlet.streaming import StreamingServer

from .fakes.api_server import ApiServer
from .fakes.handlers import LocalExec
from .fakes.kubectl import Kubectl, forwarded, shown_until
from .fakes.targets import connected, digest, echo, listening, reset, sender

pytestmark = pytest.mark.anyio
MEGABYTES = 100


@pytest.fixture
async def api(server: StreamingServer) -> AsyncIterator[ApiServer]:
    async with ApiServer(server) as api:
        yield api


@pytest.fixture(params=[True, False], ids=["websocket", "spdy"])
def kubectl(
    api: ApiServer, tmp_path: Path, runner: LocalExec, request: pytest.FixtureRequest
) -> Kubectl:
    # kubectl 1.32 drops what comes before it has made its streams ("Unknown stream id"), and no
    # guest is as quick as a process beside it.
    runner.delay = 0.2
    kubectl = Kubectl(api.url, tmp_path, request.param)
    api.framing = kubectl.framing
    return kubectl


async def test_exec_separates_the_outputs_and_returns_the_exit_code(kubectl: Kubectl) -> None:
    result = await kubectl.run("exec", "vm", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert result.code == 42
    assert result.stdout == b"out\n"
    assert result.stderr == b"err\ncommand terminated with exit code 42\n"


async def test_exec_passes_all_of_stdin_and_its_end(kubectl: Kubectl) -> None:
    data = os.urandom(5_000_000)
    result = await kubectl.run("exec", "-i", "vm", "--", "sha256sum", stdin=data)
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_exec_passes_long_output_whole(kubectl: Kubectl) -> None:
    result = await kubectl.run("exec", "vm", "--", "seq", "1", "1000000")
    assert result.stdout == "".join(f"{i}\n" for i in range(1, 1000001)).encode()


async def test_attach_talks_to_the_console_until_it_detaches(kubectl: Kubectl) -> None:
    result = await kubectl.run("attach", "-i", "vm", stdin=b"hello\x1d")
    assert result.code == 0
    assert result.stdout == b"console of vm-1\nHELLO"


async def test_cp_carries_a_file_there_and_back(kubectl: Kubectl, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "here").write_bytes(data)
    there = await kubectl.run("cp", "here", f"vm:{tmp_path}/there")
    assert there.code == 0, there.stderr
    assert (tmp_path / "there").read_bytes() == data
    back = await kubectl.run("cp", f"vm:{tmp_path}/there", "back")
    assert back.code == 0, back.stderr
    assert (tmp_path / "back").read_bytes() == data


async def test_a_terminal_has_the_size_of_the_client_and_follows_it(kubectl: Kubectl) -> None:
    ours, theirs = pty.openpty()
    # The size comes when the client has opened all its streams, a little after the start.
    shell = (
        "while stty size | grep -q '^0'; do sleep 0.05; done; stty size; read x; stty size; exit 5"
    )
    with open(ours, "r+b", buffering=0) as terminal:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 101, 0, 0))
        async with kubectl.started("exec", "-it", "vm", "--", "sh", "-c", shell, tty=theirs) as run:
            os.close(theirs)
            assert b"31 101" in await shown_until(terminal, b"31 101")
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
            run.send_signal(signal.SIGWINCH)
            await asyncio.sleep(0.3)
            terminal.write(b"\r")
            assert b"44 122" in await shown_until(terminal, b"44 122")
            assert await run.wait() == 5


@pytest.mark.parametrize("source", ["/dev/null", "/dev/zero"])
async def test_a_killed_client_ends_its_command_whatever_it_sends(
    kubectl: Kubectl, runner: LocalExec, source: str
) -> None:
    with open(source, "rb") as stdin:
        async with kubectl.started("exec", "-i", "vm", "--", "sleep", "100", stdin=stdin) as run:
            await until_async(lambda: runner.running)
            # Long enough for /dev/zero to fill every buffer on the way.
            await asyncio.sleep(0.5)
            run.kill()
            await until_async(lambda: not runner.running)


async def test_other_sessions_go_on_when_a_client_is_killed(kubectl: Kubectl) -> None:
    async with (
        listening(echo) as port,
        kubectl.started("port-forward", "vm", f":{port}") as one,
        connected(await forwarded(one)) as (reader, writer),
    ):
        async with kubectl.started("port-forward", "vm", f":{port}") as two:
            await forwarded(two)
            two.kill()
            await two.wait()
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"


async def test_port_forward_carries_100_megabytes_each_way(kubectl: Kubectl) -> None:
    data = os.urandom(1_000_000) * MEGABYTES
    wanted = hashlib.sha256(data).hexdigest()
    async with (
        listening(digest) as port,
        kubectl.started("port-forward", "vm", f":{port}") as run,
        connected(await forwarded(run)) as (reader, writer),
    ):
        writer.write(data)
        writer.write_eof()
        assert (await reader.read()).decode() == wanted
    async with (
        listening(sender(data)) as port,
        kubectl.started("port-forward", "vm", f":{port}") as run,
        connected(await forwarded(run)) as (reader, writer),
    ):
        assert hashlib.sha256(await reader.read()).hexdigest() == wanted


async def test_port_forward_serves_50_connections_at_once(kubectl: Kubectl) -> None:
    async def talk(port: int, number: int) -> bool:
        text = f"connection {number} ".encode() * 5000
        async with connected(port) as (reader, writer):
            writer.write(text)
            writer.write_eof()
            return await reader.read() == text

    async with listening(echo) as port, kubectl.started("port-forward", "vm", f":{port}") as run:
        local = await forwarded(run)
        answers = await asyncio.gather(*(talk(local, number) for number in range(50)))
    assert answers == [True] * 50


async def test_port_forward_goes_on_after_a_pod_reset_one_connection(kubectl: Kubectl) -> None:
    async with (
        listening(reset) as rude,
        listening(echo) as port,
        kubectl.started("port-forward", "vm", f":{rude}", f":{port}") as run,
    ):
        rude_port = await forwarded(run)
        await run.stdout.readline()  # type: ignore[union-attr]  # the same on ::1
        kind_port = await forwarded(run)
        async with connected(kind_port) as (reader, writer):
            async with connected(rude_port) as (rude_reader, rude_writer):
                rude_writer.write(b"x")
                assert await rude_reader.read() == b""
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"


async def test_port_forward_names_a_port_that_refuses(kubectl: Kubectl) -> None:
    async with listening(echo) as free:
        pass
    async with kubectl.started("port-forward", "vm", f":{free}") as run:
        async with connected(await forwarded(run)) as (reader, _):
            assert await reader.read() == b""
        _, stderr = await run.communicate()
    assert f"error forwarding port {free} to pod pod-1: connection refused" in stderr.decode()
