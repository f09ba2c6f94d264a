"""Calls for the primary, and calls for everyone."""

from __future__ import annotations

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said, wait_for
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri

UPDATE = cri.UpdateRuntimeConfigRequest(
    runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.1.0.0/16"))
)


def test_version_is_the_primarys(client: Client) -> None:
    assert client.runtime.Version(cri.VersionRequest()).runtime_name == "containerd"


def test_runtime_config_is_the_primarys(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    linux = cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS)
    containerd.instead["RuntimeConfig"] = lambda request, context: cri.RuntimeConfigResponse(
        linux=linux
    )
    assert client.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux == linux
    assert not virtlet.called("RuntimeConfig")


def test_an_update_is_told_to_everyone(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    client.runtime.UpdateRuntimeConfig(UPDATE)
    for runtime in (containerd, virtlet):
        assert runtime.called("UpdateRuntimeConfig") == [UPDATE]


def test_a_runtime_that_was_away_is_told_when_it_comes(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    client.runtime.UpdateRuntimeConfig(UPDATE)
    virtlet.start()
    wait_for(lambda: virtlet.called("UpdateRuntimeConfig") == [UPDATE])


def test_a_runtime_without_the_call_is_left_out(client: Client, virtlet: FakeRuntime) -> None:
    virtlet.missing.add("UpdateRuntimeConfig")
    client.runtime.UpdateRuntimeConfig(UPDATE)


def test_a_refusal_is_told_with_its_runtime(client: Client, virtlet: FakeRuntime) -> None:
    virtlet.instead["UpdateRuntimeConfig"] = lambda request, context: context.abort(
        grpc.StatusCode.INVALID_ARGUMENT, "bad CIDR"
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.UpdateRuntimeConfig(UPDATE)
    assert said(caught) == f"CRI runtime {VM}: bad CIDR"


def test_without_the_primary_an_update_fails(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    containerd.stop()
    proxy.wait_until("containerd", answering=False)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.UpdateRuntimeConfig(UPDATE)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "containerd" in said(caught)
