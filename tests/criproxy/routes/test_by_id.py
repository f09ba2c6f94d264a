"""Calls about one sandbox or container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from criproxy.routes.by_id import ID_FIELDS
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri


def test_ids_come_out_as_the_runtimes_gave_them(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    assert ordinary in containerd.sandboxes
    assert vm in virtlet.sandboxes


@pytest.mark.parametrize("name", sorted(ID_FIELDS))
def test_every_such_call_reaches_the_owner_alone(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, name: str
) -> None:
    pod = client.run_pod(target=VM)
    ids = {"pod_sandbox_id": pod, "container_id": client.create(pod)}
    containerd.calls.clear()
    request = getattr(cri, f"{name}Request")()
    setattr(request, ID_FIELDS[name], ids[ID_FIELDS[name]])
    virtlet.instead[name] = lambda request, context: getattr(cri, f"{name}Response")()
    getattr(client.runtime, name)(request)
    assert virtlet.called(name)[-1] == request
    assert not containerd.called(name)


def test_pods_from_before_the_proxy_are_known_by_their_lists(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    direct = connect(virtlet.path)
    pod = direct.run_pod()
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path})
    client = connect(proxy.config.listen)
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert virtlet.called("StopPodSandbox")
    assert not containerd.called("StopPodSandbox")


def test_a_pod_that_somebody_made_directly_is_found_by_asking(
    client: Client, connect: Callable[[Path | str], Client], virtlet: FakeRuntime
) -> None:
    direct = connect(virtlet.path)
    pod = direct.run_pod()
    container = direct.create(pod)
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
    assert status.status.id == container


def test_the_beginning_of_an_id_finds_its_owner(client: Client, virtlet: FakeRuntime) -> None:
    virtlet.ids = ["0123456789abcdef"]
    pod = client.run_pod(target=VM)
    virtlet.instead["PodSandboxStatus"] = lambda request, context: cri.PodSandboxStatusResponse(
        status=cri.PodSandboxStatus(id=pod)
    )
    answer = client.runtime.PodSandboxStatus(
        cri.PodSandboxStatusRequest(pod_sandbox_id="012345678")
    )
    assert answer.status.id == pod


def test_ids_as_the_original_gave_them_out_still_reach_their_runtime(
    client: Client, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(f"{VM}__{pod}")
    old = f"{VM}__{container}"
    answer = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=old))
    assert answer.status.id == container
    filtered = client.runtime.ListContainers(
        cri.ListContainersRequest(filter=cri.ContainerFilter(id=old))
    )
    assert [c.id for c in filtered.containers] == [container]


def test_old_ids_deeper_in_a_request_are_understood_too(
    client: Client, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="debug"))
    config.linux.security_context.namespace_options.target_id = f"{VM}__{container}"
    client.runtime.CreateContainer(
        cri.CreateContainerRequest(pod_sandbox_id=f"{VM}__{pod}", config=config)
    )
    made = virtlet.called("CreateContainer")[-1]
    assert made.pod_sandbox_id == pod
    assert made.config.linux.security_context.namespace_options.target_id == container


def test_an_id_that_two_runtimes_have_is_an_error_that_says_how_to_tell_them_apart(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    containerd.ids, virtlet.ids = ["same"], ["same"]
    client.run_pod("a")
    client.run_pod("b", target=VM)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="same"))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"containerd__same or {VM}__same" in said(caught)
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=f"{VM}__same"))
    assert [r.pod_sandbox_id for r in virtlet.called("StopPodSandbox")] == ["same"]
    assert not containerd.called("StopPodSandbox")


def test_an_id_that_nobody_has_gets_the_primarys_own_answer(
    client: Client, containerd: FakeRuntime
) -> None:
    client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id="gone"))
    assert containerd.called("RemoveContainer")
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id="gone"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert said(caught) == "containerd has no container gone"


def test_an_id_of_a_runtime_that_is_not_configured_is_an_error_that_names_those_that_are(
    client: Client,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="kata__1234"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'kata'" in said(caught)
    assert "containerd, virtlet.cloud" in said(caught)


def test_late_calls_for_a_removed_pod_still_reach_the_runtime_that_had_it(
    client: Client, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    for _ in range(2):
        client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
        client.pods()
    assert len(virtlet.called("RemovePodSandbox")) == 2


@pytest.mark.parametrize("name", ["ContainerStatus", "RunPodSandbox", "ListContainers", "Status"])
def test_a_malformed_request_is_refused_by_name(client: Client, name: str) -> None:
    call = client.raw(f"/runtime.v1.RuntimeService/{name}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"malformed {name} request" in said(caught)
