"""Long header lists: they cost their own call, and nobody else's on the same connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri

#: Bytes: more than may pass, less than what costs the connection.
LONG = 70_000
VERY_LONG = 900_000


@contextmanager
def a_call_under_way(client: Client, containerd: FakeRuntime, container: str) -> Iterator[None]:
    """StopContainer goes on meanwhile, and has to end well."""
    began, release = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> Any:
        began.set()
        release.wait(30)
        return cri.StopContainerResponse()

    containerd.instead["StopContainer"] = hang
    call = client.runtime.StopContainer.future(cri.StopContainerRequest(container_id=container))
    try:
        assert began.wait(10)
        yield
    finally:
        release.set()
    call.result(timeout=10)


def fail_with(size: int) -> Callable[[Any, Any], Any]:
    return lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "e" * size)


@pytest.mark.parametrize("size", [LONG, VERY_LONG])
def test_an_answer_with_a_long_message_costs_its_call_alone(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, size: int
) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ExecSync"] = fail_with(size)
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "containerd" in said(caught)
        assert "at most 65536 can pass" in said(caught)
        assert proxy.runtime("containerd").answering
    assert proxy.runtime("containerd").connects == 1
    # Both know the same table of headers still.
    containerd.instead["ExecSync"] = fail_with(10)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
    assert said(caught) == "e" * 10


def test_a_long_message_in_a_merged_answer_costs_its_call_alone(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ImageFsInfo"] = fail_with(LONG)
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.image.ImageFsInfo(cri.ImageFsInfoRequest())
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert proxy.runtime("containerd").connects == 1


@pytest.mark.parametrize("size", [LONG, VERY_LONG])
def test_a_client_with_long_metadata_keeps_its_other_calls(
    client: Client, containerd: FakeRuntime, size: int
) -> None:
    container = client.create(client.run_pod())
    containerd.calls.clear()
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.runtime.Version(cri.VersionRequest(), metadata=(("x", "y" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not containerd.called("Version")
    client.runtime.Version(cri.VersionRequest(), metadata=(("x", "y"),))
    assert containerd.metadata["Version"]["x"] == "y"


def test_what_may_pass_passes_whole(client: Client, containerd: FakeRuntime) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ExecSync"] = fail_with(7000)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
    assert said(caught) == "e" * 7000
