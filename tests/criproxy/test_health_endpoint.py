"""The health and metrics endpoint."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.monitoring.test_monitoring import names
from tests.polling import until
from virtlet.cri import api_pb2 as cri
from virtlet.http_port import MOST_WAITING


@pytest.fixture
def base(
    start_proxy: Callable[..., RunningProxy], containerd: FakeRuntime, virtlet: FakeRuntime
) -> tuple[RunningProxy, str]:
    """A proxy with the endpoint, and its URL."""
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path}, http=("127.0.0.1", 0))
    assert proxy.proxy is not None
    assert proxy.proxy.http_address is not None
    return proxy, f"http://127.0.0.1:{proxy.proxy.http_address[1]}"


Base = tuple[RunningProxy, str]


def test_health_says_how_each_runtime_is(base: Base, virtlet: FakeRuntime) -> None:
    proxy, url = base
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    answer = httpx.get(f"{url}/healthz")
    assert answer.status_code == 200
    states = {r["name"]: r for r in json.loads(answer.text)["runtimes"]}
    assert states["containerd"]["answering"]
    assert not states[VM]["answering"]
    assert states[VM]["reason"]


def test_readiness_follows_the_primary(
    base: Base, virtlet: FakeRuntime, containerd: FakeRuntime
) -> None:
    proxy, url = base
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    assert httpx.get(f"{url}/readyz").status_code == 200
    containerd.stop()
    proxy.wait_until("containerd", answering=False)
    assert httpx.get(f"{url}/readyz").status_code == 503
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_calls_errors_and_times_are_counted_per_runtime(
    base: Base, connect: Callable[[Path | str], Client]
) -> None:
    proxy, url = base
    client = connect(proxy.config.listen)
    pod = client.run_pod(target=VM)
    client.pods()
    with pytest.raises(grpc.RpcError):
        client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=f"{VM}__none"))
    client.raw("/a.b/" + pod)(b"")
    text = httpx.get(f"{url}/metrics").text
    assert [name for name in names("criproxy") if f"\n{name}{{" not in text] == []
    for line in (
        'criproxy_calls_total{code="OK",method="ListPodSandbox"} 1.0',
        f'criproxy_runtime_calls_total{{code="OK",method="RunPodSandbox",runtime="{VM}"}} 1.0',
        f'criproxy_runtime_calls_total{{code="NOT_FOUND",method="ContainerStatus",runtime="{VM}"}}',
        f'criproxy_runtime_call_seconds_count{{method="RunPodSandbox",runtime="{VM}"}} 1.0',
        'criproxy_runtime_up{runtime="containerd"} 1.0',
        f'criproxy_runtime_sandboxes{{runtime="{VM}"}} 1.0',
        "process_resident_memory_bytes",
    ):
        assert line in text
    assert pod not in text


def test_other_requests_are_told_what_there_is(base: Base) -> None:
    _, url = base
    assert httpx.get(f"{url}/").status_code == 404
    assert "/metrics" in httpx.get(f"{url}/").text
    assert httpx.post(f"{url}/metrics").status_code == 405


def test_a_client_that_says_nothing_or_nonsense_harms_nobody(base: Base) -> None:
    _, url = base
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with socket.create_connection(address), socket.create_connection(address) as second:
        second.sendall(b"\x00" * 20000)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_hundreds_of_idle_connections_block_no_probe(base: Base) -> None:
    proxy, url = base
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with ExitStack() as idle:
        for _ in range(5 * MOST_WAITING):
            idle.enter_context(socket.create_connection(address)).sendall(b"GET /")
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert proxy.proxy is not None
        port = proxy.proxy.endpoint.port
        # What is left of those cut off takes the server a moment.
        until(lambda: port.connections <= MOST_WAITING)
