"""`kubectl virtlet console` and `ssh`, through the stand-in API server."""

import asyncio
import os
import pty
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from virtlet.streaming import StreamingServer

from .fakes.api_server import ApiServer
from .fakes.kubectl import shown_until
from .fakes.targets import echo, listening

pytestmark = pytest.mark.anyio

SSH = """\
#!{python}
# Notes how it is called, talks to the port once, and ends as the test says.
import pathlib, socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
with socket.create_connection(("127.0.0.1", port)) as connection:
    connection.sendall(b"hello")
    said = connection.recv(5).decode()
pathlib.Path({notes!r}).write_text("\\n".join([said, *sys.argv[1:]]))
sys.exit({code})
"""


@pytest.fixture
async def api(server: StreamingServer) -> AsyncIterator[ApiServer]:
    async with ApiServer(server) as api:
        yield api


def _argv(api: ApiServer, command: str, *words: str) -> list[str]:
    inside = [sys.executable, "-m", "virtlet.kubectl.main", command]
    return [*inside, "-n", "default", "-s", api.url, *words]


def _environment(tmp_path: Path, code: int) -> dict[str, str]:
    """With an ssh that is none."""
    program = tmp_path / "ssh"
    text = SSH.format(python=sys.executable, notes=str(tmp_path / "notes"), code=code)
    program.write_text(text)
    program.chmod(stat.S_IRWXU)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECONFIG": "/dev/null", "HOME": str(tmp_path)}


async def test_the_console_is_attached_and_left_by_its_key(api: ApiServer, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as terminal:
        process = await asyncio.create_subprocess_exec(
            *_argv(api, "console", "vm"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=_environment(tmp_path, 0),
        )
        os.close(theirs)
        shown = await shown_until(terminal, b"console of vm-1", 40)
        assert b"console of default/vm; Ctrl-] leaves it" in shown
        terminal.write(b"hello\x1d")
        await shown_until(terminal, b"HELLO", 40)
        assert await process.wait() == 0


async def test_ssh_has_a_port_of_the_guest_for_as_long_as_it_lasts(
    api: ApiServer, tmp_path: Path
) -> None:
    async with listening(echo) as port:
        words = ("-p", str(port), "-i", "key", "-o", "BatchMode=yes", "me@vm", "uptime", "-p")
        process = await asyncio.create_subprocess_exec(
            *_argv(api, "ssh", *words), env=_environment(tmp_path, 7)
        )
        assert await process.wait() == 7
    said, _, local, *others = (tmp_path / "notes").read_text().splitlines()
    assert said == "hello"
    assert others == [
        *("-o", "HostKeyAlias=vm.default.5e0b", "-o", "StrictHostKeyChecking=accept-new"),
        *("-o", "BatchMode=yes", "-i", "key", "me@127.0.0.1", "uptime", "-p"),
    ]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(local))


async def test_a_port_that_is_not_forwarded_is_told(api: ApiServer, tmp_path: Path) -> None:
    api.framing = "neither"
    process = await asyncio.create_subprocess_exec(
        *_argv(api, "ssh", "nobody@vm"),
        stderr=asyncio.subprocess.PIPE,
        env=_environment(tmp_path, 255),
    )
    _, said = await process.communicate()
    assert process.returncode != 0
    assert b"Traceback" not in said
    assert b"kubectl" in said
