"""Streaming URLs without a host lead through the proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri


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
    url = urlsplit(exec_url(relaying, virtlet, "/exec/token?tty=1", VM))
    assert url.hostname == "127.0.0.1"
    with socket.create_connection((url.hostname, url.port or 0)) as connection:
        connection.settimeout(5)
        connection.sendall(
            f"POST {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            "Upgrade: SPDY/3.1\r\n\r\nearly ".encode()
        )
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
