"""How fast a forwarded connection is beside socat on the same path."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from virtlet.streaming import PortForwardRequest, StreamingServer

from .fakes import traffic

pytestmark = pytest.mark.anyio
logger = logging.getLogger(__name__)

SIZE = 1 << 28
ROUNDS = 6
WANTED = 0.5

_ROOT = str(Path(__file__).parents[2])


@asynccontextmanager
async def _run(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": _ROOT}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        process._transport.close()  # type: ignore[attr-defined]


@asynccontextmanager
async def _target(role: str) -> AsyncIterator[int]:
    async with _run(sys.executable, traffic.__file__, "target", role, str(SIZE)) as process:
        assert process.stdout
        yield int(await process.stdout.readline())


async def _seconds(role: str, *where: str) -> float:
    command = (sys.executable, traffic.__file__, "client", role, str(SIZE), *where)
    async with _run(*command) as process:
        stdout, stderr = await process.communicate()
        assert process.returncode == 0, stderr.decode()
        return float(stdout)


async def _through_socat(role: str) -> float:
    async with _target(role) as port:
        listen = "TCP-LISTEN:0,bind=127.0.0.1"
        async with _run("socat", "-d", "-d", listen, f"TCP:127.0.0.1:{port}") as socat:
            assert socat.stderr
            while b"listening on" not in (line := await socat.stderr.readline()):
                assert line, "socat ended"
            return await _seconds(role, line.decode().rsplit(":", 1)[1].strip())


async def _through_server(server: StreamingServer, role: str) -> float:
    async with _target(role) as port:
        url = urlsplit(server.port_forward_url(PortForwardRequest(sandbox_id="pod-1")))
        return await _seconds(role, str(server.port), url.path, str(port))


@pytest.mark.parametrize("role", ["upload", "download"])
async def test_port_forward_moves_at_least_half_of_what_socat_does(
    server: StreamingServer, role: str
) -> None:
    # Side by side and several times, since other work on the machine slows either now and then.
    ratios = []
    for _ in range(ROUNDS):
        socat = await _through_socat(role)
        ours = await _through_server(server, role)
        ratios.append(socat / ours)
        logger.info(
            "%s: socat %.0f MB/s, streaming server %.0f MB/s",
            role,
            SIZE / socat / 1e6,
            SIZE / ours / 1e6,
        )
        if ratios[-1] >= WANTED:
            break
    assert max(ratios) >= WANTED
