"""Clients whose host is gone without a word, in a network of the test's own that drops what they
send; and clients that are there and just take nothing."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fakes.links import loopback_up
from tests.polling import until_async
from virtlet.host import netns
from virtlet.streaming import ExecRequest, Handlers, SessionLimits, StreamingServer

from .fakes.handlers import FakeConsole, LoopbackDialer
from .fakes.runners import Flooding, Waiting
from .fakes.spdy_client import ClientStream, SpdyClient

EXEC = ExecRequest(container_id="vm", command=("yes",), stdout=True)
SILENT = 1.0
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Run]:
    """Runs a coroutine in a network namespace that has only its loopback interface."""
    namespace = tmp_path / "netns"
    netns.create(namespace)
    netns.inside(namespace, loopback_up)

    async def limited(work: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(60):
            await work

    yield lambda work: netns.inside(namespace, lambda: uvloop.run(limited(work)))
    netns.delete(namespace)


async def vanish(server: StreamingServer) -> None:
    """Let nothing of what clients send, be it an acknowledgement, arrive any more."""
    rules = f"type filter hook output priority 0; tcp dport {server.port} drop;"
    table = f"table inet t {{ chain o {{ {rules} }}; }}\n"
    await asyncio.to_thread(subprocess.run, ("nft", "-f", "-"), input=table.encode(), check=True)


async def serving(runner: Flooding | Waiting) -> StreamingServer:
    handlers = Handlers(exec=runner, attach=FakeConsole(), ports=LoopbackDialer())
    limits = SessionLimits(silent_seconds=SILENT)
    server = StreamingServer("127.0.0.1", 0, handlers, limits=limits)
    await server.start()
    return server


async def started(client: SpdyClient) -> ClientStream:
    await client.open("error")
    return await client.open("stdout")


async def stalled(flooding: Flooding) -> None:
    """Wait until a client that reads nothing has no room for more."""
    taken = -1
    while taken != flooding.taken:
        taken = flooding.taken
        await asyncio.sleep(0.3)


def test_a_client_that_vanished_while_a_command_prints_is_noticed(inside: Run) -> None:
    async def test() -> None:
        flooding = Flooding()
        server = await serving(flooding)
        async with await SpdyClient.connect(server.exec_url(EXEC), "v4.channel.k8s.io") as client:
            stdout = await started(client)
            await stdout.read_until(b"\0")
            before = time.monotonic()
            await vanish(server)
            await flooding.gone.wait()
            assert SILENT / 2 < time.monotonic() - before < 30 * SILENT
            await until_async(lambda: not server.sessions)
        await server.stop()

    inside(test())


def test_a_client_that_took_nothing_before_it_vanished_is_noticed(inside: Run) -> None:
    """The kernel asks it for room at growing intervals; two such questions go unanswered."""

    async def test() -> None:
        flooding = Flooding()
        server = await serving(flooding)
        async with await SpdyClient.connect(server.exec_url(EXEC), "v4.channel.k8s.io") as client:
            await started(client)
            client.pause()
            await stalled(flooding)
            await vanish(server)
            async with asyncio.timeout(30):
                await flooding.gone.wait()
        await server.stop()

    inside(test())


def test_a_client_that_takes_nothing_for_long_is_not_cut_off(inside: Run) -> None:
    """As when its user looks at the output page by page; it answers ever more rarely."""

    async def test() -> None:
        flooding = Flooding()
        server = await serving(flooding)
        async with await SpdyClient.connect(server.exec_url(EXEC), "v4.channel.k8s.io") as client:
            stdout = await started(client)
            client.pause()
            await stalled(flooding)
            await asyncio.sleep(8 * SILENT)
            assert not flooding.gone.is_set()
            client.resume()
            taken = flooding.taken
            await until_async(lambda: len(stdout.received) >= taken)
        await server.stop()

    inside(test())


def test_a_client_to_whom_nothing_is_sent_is_not_cut_off(inside: Run) -> None:
    async def test() -> None:
        waiting = Waiting()
        server = await serving(waiting)
        async with await SpdyClient.connect(server.exec_url(EXEC), "v4.channel.k8s.io") as client:
            await started(client)
            await asyncio.sleep(3 * SILENT)
            assert not waiting.cancelled.is_set()
        await server.stop()

    inside(test())
