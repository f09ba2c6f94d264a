import asyncio
import contextlib
import functools
import gc
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.polling import until_async
from virtlet.streaming import Handlers, SessionLimits, StreamingServer

from .fakes.handlers import FakeConsole, LocalExec, LoopbackDialer

_TEST_SECONDS = 60


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """End a test that hangs from within its loop, so that its fixtures still clean up."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return

    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(_TEST_SECONDS):
            await test(*args, **kwargs)

    pyfuncitem.obj = limited


ServerMaker = Callable[..., Awaitable[StreamingServer]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def runner(tmp_path: Path) -> LocalExec:
    return LocalExec(tmp_path)


@pytest.fixture
def dialer() -> LoopbackDialer:
    return LoopbackDialer()


@pytest.fixture
async def make_server(
    anyio_backend: object, runner: LocalExec, dialer: LoopbackDialer
) -> AsyncIterator[ServerMaker]:
    """Start servers, and check after the test that none left a task, process or socket behind."""
    await _touch_the_loop()
    descriptors = _descriptors()
    tasks = len(asyncio.all_tasks())
    async with AsyncExitStack() as stack:

        async def make(limits: SessionLimits | None = None, **options: Any) -> StreamingServer:
            handlers = Handlers(
                exec=options.pop("exec", runner),
                attach=options.pop("attach", FakeConsole()),
                ports=options.pop("ports", dialer),
            )
            server = StreamingServer("127.0.0.1", 0, handlers, limits=limits, **options)
            await server.start()
            stack.push_async_callback(server.stop)
            return server

        yield make
    await until_async(lambda: not runner.running and len(asyncio.all_tasks()) <= tasks)

    def closed() -> bool:
        # The test's own sockets: what nobody holds any more, and what a client's thread closes.
        gc.collect()
        left = _descriptors()
        assert len(left) <= len(descriptors), {
            number: target for number, target in left.items() if descriptors.get(number) != target
        }
        return True

    # As long as a server may wait for a client that does not hang up, twice over.
    await until_async(closed, timeout=30)


async def _touch_the_loop() -> None:
    """Let the loop open what it keeps: libuv has a descriptor in reserve since its first stream."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    theirs.close()
    writer.close()
    await writer.wait_closed()


def _descriptors() -> dict[str, str]:
    """Number of each open descriptor, to what it is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


@pytest.fixture
async def server(make_server: ServerMaker) -> StreamingServer:
    return await make_server()
