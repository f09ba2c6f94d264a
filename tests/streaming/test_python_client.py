"""The `kubernetes` package's stream and port-forward, through the stand-in API server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes import client as kubernetes
from kubernetes.stream import portforward, stream

from virtlet.streaming import StreamingServer

from .fakes.api_server import POD, ApiServer
from .fakes.targets import echo, listening

pytestmark = pytest.mark.anyio


@pytest.fixture
async def core(server: StreamingServer) -> AsyncIterator[kubernetes.CoreV1Api]:
    async with ApiServer(server) as api:
        configuration = kubernetes.Configuration()
        configuration.host = api.url
        with kubernetes.ApiClient(configuration) as connection:
            yield kubernetes.CoreV1Api(connection)


def _exec(core: kubernetes.CoreV1Api, *command: str, stdin: bool = False) -> Any:
    return stream(
        core.connect_get_namespaced_pod_exec,
        POD,
        "default",
        command=list(command),
        stdin=stdin,
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )


async def test_exec_separates_the_outputs_and_returns_the_exit_code(
    core: kubernetes.CoreV1Api,
) -> None:
    def talk() -> tuple[str, str, int]:
        session = _exec(core, "sh", "-c", "echo out; echo err >&2; exit 42")
        session.run_forever(timeout=10)
        session.sock.shutdown()  # its close() leaves the socket open once the server has closed
        return session.read_stdout(), session.read_stderr(), session.returncode

    assert await asyncio.to_thread(talk) == ("out\n", "err\n", 42)


async def test_exec_talks_and_ends_stdin(core: kubernetes.CoreV1Api) -> None:
    def talk() -> tuple[str, str]:
        session = _exec(core, "sh", "-c", "read name; echo hello $name; wc -c", stdin=True)
        session.write_stdin("grüße\n")
        first = session.readline_stdout(timeout=10)
        session.write_stdin(b"x" * 1000)
        session.close_channel(0)
        session.run_forever(timeout=10)
        session.sock.shutdown()  # its close() leaves the socket open once the server has closed
        return first, session.read_stdout()

    assert await asyncio.to_thread(talk) == ("hello grüße", "1000\n")


async def test_attach_talks_to_the_console(core: kubernetes.CoreV1Api) -> None:
    def talk() -> str:
        session: Any = stream(
            core.connect_get_namespaced_pod_attach,
            POD,
            "default",
            stdin=True,
            stdout=True,
            stderr=False,
            tty=True,
            _preload_content=False,
        )
        session.write_stdin("hello\x1d")
        session.run_forever(timeout=10)
        session.sock.shutdown()  # its close() leaves the socket open once the server has closed
        return str(session.read_stdout())

    assert await asyncio.to_thread(talk) == "console of vm-1\nHELLO"


async def test_port_forward_carries_bytes_both_ways(core: kubernetes.CoreV1Api) -> None:
    text = b"over the old protocol " * 5000

    def talk(port: int) -> bytes:
        forward: Any = portforward(
            core.connect_get_namespaced_pod_portforward, POD, "default", ports=str(port)
        )
        local: socket.socket = forward.socket(port)
        local.settimeout(10)
        local.sendall(text)
        got = b""
        while len(got) < len(text):
            got += local.recv(65536)
        local.close()
        assert forward.error(port) is None
        return got

    async with listening(echo) as port:
        assert await asyncio.to_thread(talk, port) == text


async def test_port_forward_names_a_port_that_refuses(core: kubernetes.CoreV1Api) -> None:
    def talk(port: int) -> str:
        forward: Any = portforward(
            core.connect_get_namespaced_pod_portforward, POD, "default", ports=str(port)
        )
        local: socket.socket = forward.socket(port)
        local.settimeout(10)
        assert local.recv(1) == b""
        local.close()
        return str(forward.error(port))

    async with listening(echo) as refused:
        pass
    assert "connection refused" in await asyncio.to_thread(talk, refused)
