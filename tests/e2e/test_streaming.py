"""kubectl's exec, attach, cp, logs and port-forward into real guests, in both framings."""

import asyncio
import http.client
import os
import pty
import socket
import sys
import tty
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.e2e.cri_urls import CriUrls
from tests.fakes.rfb import Viewer, pixels_of_png
from tests.polling import until
from tests.streaming.fakes.api_server import ApiServer
from tests.streaming.fakes.kubectl import Kubectl, Result, forwarded
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.streaming import AttachRequest

T = TypeVar("T")
BANNER = b"http://ADDRESS/ answers"
LIMIT = 60.0
"""Seconds for one test's kubectl; a loaded machine without KVM is slow."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod whose guest has booted, on a node of its own."""
    settings = {"handlers": {"": {"flavor": {"video": "vga"}}}}
    with (
        Playground({"tiny": TINY}, subnet="10.127.0.0/16", settings=settings) as node,
        node.client() as client,
    ):
        pod = Pod(node, client, make_manifest(node, "streamed"))
        pod.manifest.container.stdin = pod.manifest.container.stdin_once = True
        pod = pod.up()
        pod.wait_for_answer()
        pod.wait_for_console("login:")
        yield pod


Session = Callable[[Callable[[Kubectl], Awaitable[Any]]], Any]


@pytest.fixture(params=[True, False], ids=["websocket", "spdy"])
def with_kubectl(guest: Pod, tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    """Runs a session with kubectl, in the node's namespace: the streaming server is there."""

    async def session(work: Callable[[Kubectl], Awaitable[T]]) -> T:
        urls: Any = CriUrls(guest)
        log = Path(guest.status.log_path)
        async with asyncio.timeout(LIMIT), ApiServer(urls, log) as api:
            kubectl = Kubectl(api.url, tmp_path, request.param)
            api.framing = kubectl.framing
            return await work(kubectl)

    def run(work: Callable[[Kubectl], Awaitable[T]]) -> T:
        return netns.inside(guest.node.netns, lambda: asyncio.run(session(work)))

    return run


def test_a_command_runs_in_the_guest_with_its_output_and_exit_code(with_kubectl: Session) -> None:
    async def work(kubectl: Kubectl) -> Result:
        return await kubectl.run("exec", "vm", "--", "sh", "-c", "echo out; echo err >&2; exit 3")

    result = with_kubectl(work)
    assert result.stdout == b"out\n"
    assert b"err\n" in result.stderr
    assert result.code == 3


def test_input_reaches_the_command_and_comes_back(with_kubectl: Session) -> None:
    data = os.urandom(100_000).hex().encode()

    async def work(kubectl: Kubectl) -> Result:
        return await kubectl.run("exec", "-i", "vm", "--", "cat", stdin=data)

    result = with_kubectl(work)
    assert result.stdout == data
    assert result.code == 0


def test_files_are_copied_both_ways(with_kubectl: Session, tmp_path: Path) -> None:
    original, back = tmp_path / "original", tmp_path / "back"
    original.write_bytes(os.urandom(50_000))

    async def work(kubectl: Kubectl) -> tuple[Result, Result]:
        there = await kubectl.run("cp", "original", "vm:/tmp/copied")
        return there, await kubectl.run("cp", "vm:/tmp/copied", "back")

    there, again = with_kubectl(work)
    assert (there.code, again.code) == (0, 0), there.stderr + again.stderr
    assert back.read_bytes() == original.read_bytes()


def test_a_port_of_the_guest_is_forwarded(with_kubectl: Session) -> None:
    async def work(kubectl: Kubectl) -> bytes:
        async with kubectl.started("port-forward", "pod/vm", ":80") as process:
            port = await forwarded(process)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    assert b"streamed" in with_kubectl(work)


def _colour(viewer: Viewer) -> tuple[bool, ...]:
    """Whether most of the screen is red, green and blue; nothing where no colour has nine tenths.

    A VGA has six bits for each, of which emulators make different bytes.
    """
    picture = viewer.picture()
    pixels = Counter(picture[at : at + 3] for at in range(0, len(picture), 3))
    [(colour, count)] = pixels.most_common(1)
    return tuple(part > 128 for part in colour) if count > 0.9 * pixels.total() else ()


def test_the_screen_is_forwarded_to_several_viewers(with_kubectl: Session) -> None:
    """By port 5900, with what the guest draws on it."""

    async def paint(kubectl: Kubectl, colour: int) -> None:
        script = f"printf '\\033[{colour}m\\033[2J\\033[H' >/dev/tty0"
        result = await kubectl.run("exec", "vm", "--", "sh", "-c", script)
        assert result.code == 0, result.stderr

    async def look(kubectl: Kubectl, viewers: list[Viewer]) -> None:
        for code, colour in ((41, (True, False, False)), (44, (False, False, True))):
            await paint(kubectl, code)
            for viewer in viewers:
                while await asyncio.to_thread(_colour, viewer) != colour:
                    await asyncio.sleep(0.1)

    async def work(kubectl: Kubectl) -> None:
        async with kubectl.started("port-forward", "vm", ":5900") as process:
            address = ("127.0.0.1", await forwarded(process))
            with socket.create_connection(address) as one, socket.create_connection(address) as two:
                viewers = [
                    await asyncio.to_thread(Viewer.greet, connection, shared=False)
                    for connection in (one, two)
                ]
                await look(kubectl, viewers)

    with_kubectl(work)


def test_a_screenshot_is_what_the_guest_shows(with_kubectl: Session, tmp_path: Path) -> None:
    file = tmp_path / "screen.png"

    async def work(kubectl: Kubectl) -> None:
        script = "printf '\\033[42m\\033[2J\\033[H' >/dev/tty0"
        assert (await kubectl.run("exec", "vm", "--", "sh", "-c", script)).code == 0
        argv = [sys.executable, "-m", "virtlet.kubectl.main", "screenshot", "-n", "default"]
        green = False
        while not green:
            process = await asyncio.create_subprocess_exec(
                *argv, "-s", kubectl.server, "vm", str(file), env=kubectl.environment
            )
            assert await process.wait() == 0
            width, height, lines = pixels_of_png(file.read_bytes())
            line = lines[height // 2]
            pixels = [line[at : at + 3] for at in range(0, 3 * width, 3)]
            green = all(one[1] > 128 > max(one[0], one[2]) for one in pixels)

    with_kubectl(work)


def test_the_log_is_the_console_and_can_be_followed(guest: Pod, with_kubectl: Session) -> None:
    async def work(kubectl: Kubectl) -> tuple[Result, bytes]:
        past = await kubectl.run("logs", "vm")
        async with kubectl.started("logs", "-f", "vm") as process:
            assert process.stdout is not None
            lines = past.stdout[: past.stdout.rindex(b"\n") + 1]  # kubectl follows line by line
            seen = await process.stdout.readexactly(len(lines))
            said = await kubectl.run("exec", "vm", "--", "sh", "-c", "echo mor''e >/dev/ttyS0")
            assert said.code == 0, said.stderr
            assert seen == lines
            return past, await process.stdout.readuntil(b"more")

    past, followed = with_kubectl(work)
    assert past.code == 0, past.stderr
    assert b"Linux version" in past.stdout
    assert b"login:" in past.stdout
    assert b"Linux version" not in followed


def test_someone_attached_types_at_the_console_and_detaches(
    guest: Pod, with_kubectl: Session
) -> None:
    async def work(kubectl: Kubectl) -> tuple[bytes, int | None]:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        seen, read = b"", 0

        async def until(text: bytes) -> None:
            nonlocal seen, read
            loop = asyncio.get_running_loop()
            try:
                while text not in seen[read:]:
                    seen += await loop.run_in_executor(None, os.read, ours, 4096)
            except asyncio.CancelledError as error:
                raise AssertionError(f"{text!r} did not come after {seen!r}") from error
            read = seen.index(text, read) + len(text)

        async with kubectl.started("attach", "-it", "vm", tty=theirs) as process:
            os.close(theirs)
            await until(b"pressing enter")
            os.write(ours, b"\n")
            await until(b"login:")
            os.write(ours, b"root\n")
            await until(b"#")
            os.write(ours, b"echo answer-$((6 * 7))\n")
            await until(b"answer-42")
            await until(b"#")
            os.write(ours, b"exit\n")
            await until(b"login:")
            os.write(ours, b"\x1d")
            await process.wait()
        os.close(ours)
        return seen, process.returncode

    seen, code = with_kubectl(work)
    assert b"Linux version" not in seen, "history is not replayed"
    assert code == 0
    guest.wait_for_console("answer-42", 5)


def test_the_end_of_an_input_for_one_client_reaches_the_console_and_ends_the_session(
    guest: Pod, with_kubectl: Session
) -> None:
    """As critest attaches, and `kubectl run -i` with an input that ends."""
    log = Path(guest.status.log_path)
    banners = log.read_bytes().count(BANNER)

    async def work(kubectl: Kubectl) -> Result:
        return await kubectl.run("attach", "-i", "vm", stdin=b"\n")

    result = with_kubectl(work)
    assert result.code == 0, result.stderr
    # Who asked for the name has gone, and another one asks.
    until(lambda: log.read_bytes().count(BANNER) > banners, "the next banner", 30)


def test_a_url_serves_one_connection(guest: Pod) -> None:
    url = CriUrls(guest).attach_url(AttachRequest(container_id="", stdout=True))

    headers = {
        "Connection": "Upgrade",
        "Upgrade": "SPDY/3.1",
        "X-Stream-Protocol-Version": "v4.channel.k8s.io",
    }

    def ask() -> int:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=5)
        try:
            connection.request("POST", parts.path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    first, second = (netns.inside(guest.node.netns, ask) for _ in range(2))
    assert (first, second) == (101, 404)


def test_what_is_unknown_or_stopped_gets_no_url(guest: Pod) -> None:
    call = guest.client.call
    for method, request in (
        ("Attach", cri.AttachRequest(container_id="x", stdout=True)),
        ("Exec", cri.ExecRequest(container_id="x", cmd=["true"], stdout=True)),
        ("PortForward", cri.PortForwardRequest(pod_sandbox_id="x")),
    ):
        with pytest.raises(CallFailed, match="NOT_FOUND"):
            call(method, request)
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        call("Attach", cri.AttachRequest(container_id=guest.vm))
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        call("PortForward", cri.PortForwardRequest(pod_sandbox_id=guest.id, port=[70000]))
