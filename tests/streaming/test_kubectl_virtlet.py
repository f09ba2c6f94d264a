"""`kubectl virtlet console`, `ssh`, `vnc` and `screenshot`, through the stand-in API server."""

import asyncio
import os
import pty
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.fakes.rfb import greeting, pixels_of_png, update
from virtlet.errors import FailedPrecondition
from virtlet.streaming import PortForwardRequest, StreamingServer

from .conftest import ServerMaker
from .fakes.api_server import ApiServer
from .fakes.kubectl import shown_until
from .fakes.targets import connected, echo, listening

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


VIEWER = """\
#!{python}
# Notes how it is called and what the screen says first, and ends as the test says.
import pathlib, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[-1].rpartition(":")[2]))) as connection:
    said = connection.recv(12)[:3].decode()
pathlib.Path({notes!r}).write_text("\\n".join([said, *sys.argv[1:]]))
sys.exit(6)
"""


@frozen
class ScreenDialer:
    """A pod with a screen at VNC's port, and nothing else."""

    served: int
    """The port of this machine that stands for it; 0 for a pod without."""

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        if port != 5900 or not self.served:
            raise FailedPrecondition("the VM has no screen: give its flavor `video`")
        target = socket.socket()
        target.setblocking(False)
        await asyncio.get_running_loop().sock_connect(target, ("127.0.0.1", self.served))
        return target


@pytest.fixture
async def with_screen(make_server: ServerMaker) -> AsyncIterator[ApiServer]:
    """A pod whose screen is one red and one blue pixel; each step waits for the viewer's."""
    shown = greeting(2, 1) + update(((0, 0, 2, 1), b"\xff\0\0\0\0\0\xff\0"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(shown[:12])
        if await reader.read(12):
            writer.write(shown[12:])
        while await reader.read(65536):
            pass

    async with (
        listening(serve) as port,
        ApiServer(await make_server(ports=ScreenDialer(port))) as api,
    ):
        yield api


async def _said(api: ApiServer, tmp_path: Path, *words: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *_argv(api, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_environment(tmp_path, 0),
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode(errors="replace")


async def test_a_viewer_has_a_port_of_the_screen_for_as_long_as_it_runs(
    with_screen: ApiServer, tmp_path: Path
) -> None:
    viewer = tmp_path / "vncviewer"
    viewer.write_text(VIEWER.format(python=sys.executable, notes=str(tmp_path / "notes")))
    viewer.chmod(stat.S_IRWXU)
    code, said = await _said(with_screen, tmp_path, "vnc", "--viewer", f"{viewer} -Shared", "vm")
    assert code == 6, said
    first, option, address = (tmp_path / "notes").read_text().splitlines()
    assert (first, option) == ("RFB", "-Shared")
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1:"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(port))


async def test_the_address_of_a_screen_is_printed_and_served_until_a_signal(
    with_screen: ApiServer, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *_argv(with_screen, "vnc", "--proxy-only", "vm"),
        stdout=asyncio.subprocess.PIPE,
        env=_environment(tmp_path, 0),
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    assert line.startswith("vnc://127.0.0.1:")
    port = int(line.rpartition(":")[2])
    async with connected(port) as (reader, _):
        assert await reader.readexactly(12) == b"RFB 003.008\n"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_screenshot_is_what_is_on_the_screen(
    with_screen: ApiServer, tmp_path: Path
) -> None:
    file = tmp_path / "screen.png"
    code, said = await _said(with_screen, tmp_path, "screenshot", "vm", str(file))
    assert (code, said) == (0, "")
    assert pixels_of_png(file.read_bytes()) == (2, 1, [b"\xff\0\0\0\0\xff"])


async def test_a_vm_without_a_screen_says_what_its_flavor_lacks(
    make_server: ServerMaker, tmp_path: Path
) -> None:
    async with ApiServer(await make_server(ports=ScreenDialer(0))) as api:
        for words in (["vnc", "--proxy-only", "vm"], ["screenshot", "vm", "screen.png"]):
            code, said = await _said(api, tmp_path, *words)
            assert code == 1
            assert "the screen of pod default/vm is not shown: " in said
            assert "give its flavor `video`" in said
