"""Streaming URLs without a host lead through the proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri
from virtlet.http_port import MOST_WAITING


class StreamServer:
    """Takes one connection, remembers the request's head, then echoes in capitals."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.head = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            while b"\r\n\r\n" not in self.head:
                self.head += connection.recv(1)
            if b"Upgrade" not in self.head:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            while data := connection.recv(4096):
                connection.sendall(data.upper())
            connection.sendall(b"[end]")

    def stop(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def streams() -> Iterator[StreamServer]:
    """A runtime's streaming server."""
    server = StreamServer()
    yield server
    server.stop()


@pytest.fixture
def relaying(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    streams: StreamServer,
) -> Client:
    """A client of a proxy that knows the other runtime's streaming server."""
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"stream_url": f"http://127.0.0.1:{streams.port}/base"}},
    )
    return connect(proxy.config.listen)


def upgraded(url: str, early: str = "") -> socket.socket:
    """A connection with a request to upgrade it, and bytes that come with it."""
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    connection = socket.create_connection((parts.hostname, parts.port or 0))
    connection.settimeout(5)
    connection.sendall(
        f"POST {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        f"Upgrade: SPDY/3.1\r\n\r\n{early}".encode()
    )
    return connection


def exec_url(client: Client, runtime: FakeRuntime, url: str, target: str) -> str:
    runtime.instead["Exec"] = lambda request, context: cri.ExecResponse(url=url)
    container = client.create(client.run_pod(target=target))
    return str(client.runtime.Exec(cri.ExecRequest(container_id=container)).url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:10010/exec/token",
        "https://node:10010/x",
        "127.0.0.1:10010/exec/token",
        "//node/exec",
        "",
    ],
)
def test_other_urls_come_as_the_runtime_gave_them(
    client: Client, virtlet: FakeRuntime, url: str
) -> None:
    assert exec_url(client, virtlet, url, VM) == url


def test_a_relative_url_leads_through_the_proxy_whatever_is_spoken_there(
    relaying: Client, virtlet: FakeRuntime, streams: StreamServer
) -> None:
    url = exec_url(relaying, virtlet, "/exec/token?tty=1", VM)
    with upgraded(url, "early ") as connection:
        connection.sendall(b"hello \xff")
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(4096):
            received += data
    assert received == b"HTTP/1.1 101 Switching Protocols\r\n\r\nEARLY HELLO \xff[end]"
    assert streams.head.startswith(b"POST /base/exec/token?tty=1 HTTP/1.1\r\n")
    assert b"Upgrade: SPDY/3.1" in streams.head


def test_a_request_without_an_upgrade_is_the_last_of_its_connection(
    relaying: Client, virtlet: FakeRuntime, streams: StreamServer
) -> None:
    url = exec_url(relaying, virtlet, "/exec/token", VM)
    assert httpx.get(url).text == "ok"
    assert b"Connection: close" in streams.head
    assert b"keep-alive" not in streams.head


def test_without_a_known_streaming_server_the_call_fails_and_says_what_to_set(
    relaying: Client, containerd: FakeRuntime
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        exec_url(relaying, containerd, "/exec/token", "containerd")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "'stream_url'" in said(caught)


def test_a_streaming_server_that_is_away_is_told(
    relaying: Client, virtlet: FakeRuntime, streams: StreamServer
) -> None:
    url = exec_url(relaying, virtlet, "/exec/token", VM)
    streams.stop()
    assert httpx.get(url).status_code == 502
    assert httpx.get(url.replace(VM, "kata")).status_code == 404


def test_idle_connections_cut_off_each_other_and_no_stream(
    relaying: Client, virtlet: FakeRuntime, streams: StreamServer
) -> None:
    url = exec_url(relaying, virtlet, "/exec/token", VM)
    with upgraded(url) as stream, ExitStack() as idle:
        assert stream.recv(4096) == b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
        port = urlsplit(url).port or 0
        silent = [
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(3 * MOST_WAITING)
        ]
        # Nor do those that ask for a stream, and get none from the runtime: it serves one alone.
        refused = [idle.enter_context(upgraded(url)) for _ in range(3 * MOST_WAITING)]
        for connection in (*silent, *refused[:MOST_WAITING]):
            connection.settimeout(20)
            with suppress(ConnectionResetError):
                assert connection.recv(4096) == b""
        stream.sendall(b"still here")
        assert stream.recv(4096) == b"STILL HERE"
        missing = url.replace(VM, "kata")
        assert httpx.get(missing).status_code == 404
