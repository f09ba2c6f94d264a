"""Sessions into a real guest beside each other: loads, readers, clients that vanish, restarts."""

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import signal
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes import client as kubernetes
from kubernetes.stream import stream

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.e2e.cri_urls import CriUrls
from tests.streaming.fakes.api_server import POD, ApiServer
from tests.streaming.fakes.kubectl import Kubectl, forwarded, shown_until
from virtlet.cli.playground import BRIDGE, CNI_BIN_DIR, Playground
from virtlet.host import netns

T = TypeVar("T")
LIMIT = 120.0
"""Seconds for one test's clients; a loaded machine without KVM is slow."""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod with addresses of both families, whose guest has booted, on a node of its own."""
    networks = tmp_path_factory.mktemp("cni")
    network = {
        "cniVersion": "1.0.0",
        "name": "playground",
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(networks / "ipam"),
            "ranges": [[{"subnet": "10.124.0.0/16"}], [{"subnet": "fd12:7::/64"}]],
        },
    }
    (networks / "10-dual.conf").write_text(json.dumps(network))
    settings = {"cniConfigDir": str(networks), "cniPluginDir": CNI_BIN_DIR}
    with Playground({"tiny": TINY}, settings=settings) as node, node.client() as client:
        pod = Pod(node, client, make_manifest(node, "visited")).up()
        pod.wait_for_answer()
        pod.wait_for_console("login:")
        yield pod


Session = Callable[[Callable[[ApiServer, Kubectl], Awaitable[Any]]], Any]


@pytest.fixture
def session(guest: Pod, tmp_path: Path) -> Session:
    """Runs clients against the stand-in API server, in the node's namespace."""

    async def serve(work: Callable[[ApiServer, Kubectl], Awaitable[T]]) -> T:
        urls: Any = CriUrls(guest)
        async with asyncio.timeout(LIMIT), ApiServer(urls) as api:
            kubectl = Kubectl(api.url, tmp_path, True)
            api.framing = kubectl.framing
            return await work(api, kubectl)

    return lambda work: netns.inside(guest.node.netns, lambda: asyncio.run(serve(work)))


@contextlib.asynccontextmanager
async def attached(api: ApiServer) -> AsyncIterator[Any]:
    """The console through the `kubernetes` package; typing Ctrl-] ends it."""
    configuration = kubernetes.Configuration()
    configuration.host = api.url
    with kubernetes.ApiClient(configuration) as connection:
        attach = kubernetes.CoreV1Api(connection).connect_get_namespaced_pod_attach
        wanted = {"stdin": True, "stdout": True, "stderr": False, "tty": True}
        session: Any = await asyncio.to_thread(
            lambda: stream(attach, POD, "default", _preload_content=False, **wanted)
        )
        yield session
        await asyncio.to_thread(session.write_stdin, "\x1d")
        await asyncio.to_thread(session.run_forever, timeout=20)
        session.sock.shutdown()  # its close() leaves the socket open once the server has closed


async def says(session: Any, text: str) -> str:
    """What an attached client sees, up to a text."""
    seen = ""
    while text not in seen:
        await asyncio.to_thread(session.update, timeout=1)
        seen += session.read_stdout(timeout=0) if session.peek_stdout() else ""
    return seen


async def log_in(session: Any) -> None:
    """Get to the shell on the console."""
    await asyncio.to_thread(session.write_stdin, "\n")
    await says(session, "login:")
    await asyncio.to_thread(session.write_stdin, "root\n")
    await says(session, "#")


async def log_out(session: Any) -> None:
    """Leave the console as it was."""
    await asyncio.to_thread(session.write_stdin, "exit\n")
    await says(session, "login:")


def test_all_who_are_attached_see_the_console_and_share_its_keyboard(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> None:
        async with attached(api) as one:
            async with attached(api) as other:
                await log_in(one)
                await says(other, "#")
                await asyncio.to_thread(other.write_stdin, "echo from-$((6 * 7))\n")
                for reader in (one, other):
                    await says(reader, "from-42")
            await asyncio.to_thread(one.write_stdin, "echo still-$((6 * 7))\n")
            await says(one, "still-42")
            await log_out(one)

    session(work)


def test_the_console_is_attached_to_again_after_the_manager_was_killed(
    guest: Pod, session: Session
) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> None:
        async with attached(api) as console:
            await log_in(console)
            await asyncio.to_thread(console.write_stdin, "echo again-$((6 * 7))\n")
            await says(console, "again-42")
            await log_out(console)

    guest.node.kill()
    guest.node.start()
    session(work)


def test_a_terminal_in_the_guest_has_the_size_of_the_clients(session: Session) -> None:
    # The size comes when the client has opened all its streams, a little after the start.
    shell = (
        "while stty size | grep -q '^0'; do sleep 0.1; done; stty size; read x; stty size; exit 5"
    )

    async def work(api: ApiServer, kubectl: Kubectl) -> int | None:
        ours, theirs = pty.openpty()
        with open(ours, "r+b", buffering=0) as terminal:
            termios.tcsetwinsize(ours, (31, 101))
            command = ("exec", "-it", "vm", "--", "sh", "-c", shell)
            async with kubectl.started(*command, tty=theirs) as run:
                os.close(theirs)
                await shown_until(terminal, b"31 101", LIMIT)
                termios.tcsetwinsize(ours, (44, 122))
                run.send_signal(signal.SIGWINCH)
                await asyncio.sleep(2)
                terminal.write(b"\r")
                await shown_until(terminal, b"44 122", LIMIT)
                return await run.wait()

    assert session(work) == 5


def test_the_python_client_runs_a_command_in_the_guest(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> tuple[str, str, int]:
        configuration = kubernetes.Configuration()
        configuration.host = api.url

        def talk() -> tuple[str, str, int]:
            with kubernetes.ApiClient(configuration) as connection:
                talking: Any = stream(
                    kubernetes.CoreV1Api(connection).connect_get_namespaced_pod_exec,
                    POD,
                    "default",
                    command=["sh", "-c", "cat; echo err >&2; exit 42"],
                    stdin=True,
                    stdout=True,
                    stderr=True,
                    tty=False,
                    _preload_content=False,
                )
                talking.write_stdin("in")
                talking.close_channel(0)
                talking.run_forever(timeout=60)
                talking.sock.shutdown()
                return talking.read_stdout(), talking.read_stderr(), talking.returncode

        return await asyncio.to_thread(talk)

    assert session(work) == ("in", "err\n", 42)


def test_a_client_that_is_killed_ends_its_command_in_the_guest(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> None:
        async def runs() -> bool:
            listing = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'"
            found = await kubectl.run("exec", "vm", "--", "sh", "-c", listing)
            assert found.code == 0, found.stderr
            return b"5721" in found.stdout.split(b"\n")

        async with kubectl.started("exec", "vm", "--", "sleep", "5721") as run:
            while not await runs():
                pass
            run.kill()
        while await runs():
            pass

    session(work)


async def fetched(port: int) -> bytes:
    """What the guest's HTTP server says through a forwarded port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


def test_a_port_nobody_listens_on_fails_alone(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> tuple[bytes, bytes]:
        async with (
            kubectl.started("port-forward", "vm", ":80") as good,
            kubectl.started("port-forward", "vm", ":81") as bad,
        ):
            port = await forwarded(good)
            assert b"visited" in await fetched(port)
            assert await fetched(await forwarded(bad)) == b""
            assert bad.stderr is not None
            return await bad.stderr.readline(), await fetched(port)

    complaint, answer = session(work)
    assert b"refused" in complaint
    assert b"visited" in answer


def test_a_vm_without_a_screen_says_how_to_get_one(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> bytes:
        async with kubectl.started("port-forward", "vm", ":5900") as process:
            reader, writer = await asyncio.open_connection("127.0.0.1", await forwarded(process))
            assert await reader.read() == b""
            writer.close()
            _, said = await process.communicate()
            return said

    assert b"the VM has no screen, as its flavor has no `video`" in session(work)


def test_fifty_forwarded_connections_at_once_are_all_served(session: Session) -> None:
    async def work(api: ApiServer, kubectl: Kubectl) -> list[bytes]:
        async with kubectl.started("port-forward", "vm", ":80") as process:
            port = await forwarded(process)
            return await asyncio.gather(*(fetched(port) for _ in range(50)))

    assert all(b"visited" in answer for answer in session(work))


async def listens(kubectl: Kubectl, port: int) -> None:
    """Wait until somebody listens on a port in the guest; kubectl gives up where nobody does."""
    command = ("exec", "vm", "--", "sh", "-c", f"netstat -ltn | grep -q ':{port} '")
    while (await kubectl.run(*command)).code != 0:
        await asyncio.sleep(0.1)


def test_a_hundred_megabytes_come_out_of_the_guest_unchanged(session: Session) -> None:
    piece = os.urandom(1 << 20)
    serve = "for i in $(seq 100); do cat /tmp/piece; done | nc -l -p 5000"

    async def work(api: ApiServer, kubectl: Kubectl) -> str:
        put = await kubectl.run("exec", "-i", "vm", "--", "tee", "/tmp/piece", stdin=piece)
        assert put.stdout == piece
        async with kubectl.started("exec", "vm", "--", "sh", "-c", serve) as server:
            await listens(kubectl, 5000)
            async with kubectl.started("port-forward", "vm", ":5000") as process:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", await forwarded(process)
                )
                hashed = hashlib.sha256()
                while got := await reader.read(1 << 16):
                    hashed.update(got)
                writer.close()
                assert await server.wait() == 0
        return hashed.hexdigest()

    assert session(work) == hashlib.sha256(piece * 100).hexdigest()


def test_a_port_is_forwarded_to_an_address_of_either_family(guest: Pod, session: Session) -> None:
    """The guest listens on one address alone; the other refuses."""
    status = guest.client.pod_status(guest.id).network
    addresses = [status.ip, *(other.ip for other in status.additional_ips)]
    assert sorted(":" in address for address in addresses) == [False, True]

    async def work(api: ApiServer, kubectl: Kubectl) -> list[bytes]:
        answers = []
        for number, address in enumerate(addresses):
            port = 5001 + number
            place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            command = ("exec", "vm", "--", "httpd", "-f", "-h", "/srv/www", "-p", place)
            async with kubectl.started(*command):
                await listens(kubectl, port)
                async with kubectl.started("port-forward", "vm", f":{port}") as process:
                    answers.append(await fetched(await forwarded(process)))
        return answers

    for answer in session(work):
        assert b"visited" in answer
