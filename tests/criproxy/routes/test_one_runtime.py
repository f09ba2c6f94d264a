"""Calls go to the owner of an id, also those that the proxy does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criproxy.methods import BY_NAME
from criproxy.routes.one_runtime import ID_FIELDS, replaced, texts
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


@pytest.mark.parametrize("name", sorted(ID_FIELDS))
def test_the_beginning_of_an_id_reaches_its_owner_as_the_whole_id(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, name: str
) -> None:
    client.create(client.run_pod())
    pod = client.run_pod(target=VM)
    ids = {"pod_sandbox_id": pod, "container_id": client.create(pod)}
    containerd.calls.clear()
    request = getattr(cri, f"{name}Request")()
    setattr(request, ID_FIELDS[name], ids[ID_FIELDS[name]][:13])
    virtlet.instead[name] = lambda request, context: getattr(cri, f"{name}Response")()
    getattr(client.runtime, name)(request)
    assert getattr(virtlet.called(name)[-1], ID_FIELDS[name]) == ids[ID_FIELDS[name]]
    assert not containerd.called(name)


def test_the_beginning_of_an_id_that_somebody_made_directly_is_found_by_asking(
    client: Client, connect: Callable[[Path | str], Client], virtlet: FakeRuntime
) -> None:
    pod = connect(virtlet.path).run_pod()
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod[:13])
    assert client.runtime.PodSandboxStatus(request).status.id == pod


@pytest.mark.parametrize("mine", [True, False], ids=["of one runtime", "of two runtimes"])
def test_the_beginning_of_several_ids_is_told_with_them(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, mine: bool
) -> None:
    first, second = "3f47" + "0" * 28, "3f99" + "0" * 28
    virtlet.ids = [first, second] if mine else [first]
    containerd.ids = [second]
    client.run_pod("a", target=VM)
    client.run_pod("b", target=VM if mine else "")
    for method, request in (
        ("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id="3f")),
        ("ListPodSandbox", cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id="3f"))),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(client.runtime, method)(request)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "pod sandbox id 3f is the beginning of 2 ids" in said(caught)
        assert f"{first} of {VM}" in said(caught)
        assert f"{second} of {VM if mine else 'containerd'}" in said(caught)
    assert not virtlet.called("StopPodSandbox")
    assert not containerd.called("StopPodSandbox")


def test_a_runtime_that_lists_nothing_where_several_ids_begin_so_is_not_taken_to_have_none(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    containerd.ids, virtlet.ids = ["3f1" + "0" * 29, "3f2" + "0" * 29], ["3f3" + "0" * 29]
    client.run_pod("a")
    client.run_pod("b")
    client.run_pod("c", target=VM)
    containerd.instead["ListPodSandbox"] = lambda request, context: cri.ListPodSandboxResponse()
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="3f"))
    assert "the beginning of 3 ids" in said(caught)


def test_the_beginning_of_an_id_changes_nothing_while_a_runtime_is_silent(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod()
    virtlet.instead["ListPodSandbox"] = lambda request, context: context.abort(
        grpc.StatusCode.UNAVAILABLE, "too busy"
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod[:13]))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"begins {pod} of containerd and may begin an id of {VM}: " in said(caught)
    assert "too busy; give the whole id" in said(caught)
    assert not containerd.called("StopPodSandbox")
    status = cri.PodSandboxStatusRequest(pod_sandbox_id=pod[:13])
    assert client.runtime.PodSandboxStatus(status).status.id == pod
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert containerd.called("StopPodSandbox")


def test_the_beginning_of_an_id_of_a_runtime_that_is_away_is_its(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod[:13]))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"CRI runtime {VM} " in said(caught)


def test_what_a_stop_by_the_beginning_of_an_id_changed_is_known_while_the_runtime_is_away(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    client.pods()
    virtlet.instead["ListPodSandbox"] = lambda request, context: cri.ListPodSandboxResponse(
        items=[p for p in virtlet.sandboxes.values() if request.filter.id]
    )
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod[:13]))
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    [item] = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert (item.id, item.state) == (pod, cri.SANDBOX_NOTREADY)


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


NEWER = "/runtime.v1.RuntimeService/FreezeContainer"


def field(number: int, text: str) -> bytes:
    """A text field."""
    return bytes((number << 3 | 2, len(text))) + text.encode()


def test_a_call_without_a_known_id_goes_to_the_primary(client: Client) -> None:
    call = client.raw(NEWER)
    assert call(b"whatever \xff") == b"containerd:whatever \xff"


def test_a_call_with_a_known_id_goes_to_its_owner(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    message = b"\x08\x05" + b"\x15abcd" + b"\x19abcdefgh" + field(4, container) + field(5, "x")
    assert client.raw(NEWER)(message) == VM.encode() + b":" + message


def test_an_old_id_is_put_into_its_owners_form(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    sent = field(1, f"{VM}__{container}") + field(2, "rest")
    got = field(1, container) + field(2, "rest")
    assert client.raw(NEWER)(sent) == VM.encode() + b":" + got


def test_streams_in_both_directions_pass(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    first = field(1, container)
    call = client.raw_stream(NEWER)
    answers = call(iter((first, b"two", b"three")))
    prefix = VM.encode() + b":"
    assert list(answers) == [prefix + first, prefix + b"two", prefix + b"three"]


def test_a_request_without_a_message_passes(client: Client, containerd: FakeRuntime) -> None:
    assert list(client.raw_stream(NEWER)(iter(()))) == []
    assert "unknown" in containerd.metadata


def test_other_services_go_to_the_primary(client: Client) -> None:
    call = client.raw("/grpc.health.v1.Health/Check")
    assert call(b"") == b"containerd:"


def test_an_owner_that_is_away_is_told_of(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    container = client.create(client.run_pod(target=VM))
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    with pytest.raises(grpc.RpcError) as caught:
        client.raw(NEWER)(field(1, container))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert VM in said(caught)


TEXT = st.text(min_size=1, max_size=60)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_problem(message: bytes) -> None:
    for field in texts(message):
        assert 0 <= field.size_at < field.end <= len(message)


@given(TEXT, TEXT, st.integers(-(2**31), 2**31), st.text(min_size=1, max_size=250))
def test_texts_are_found_and_replaced_like_a_decoder_would(
    first: str, second: str, number: int, new: str
) -> None:
    message = cri.CheckpointContainerRequest(
        container_id=first, location=second, timeout=number
    ).SerializeToString()
    fields = list(texts(message))
    assert [f.text for f in fields] == [first, second]
    changed = cri.CheckpointContainerRequest.FromString(replaced(message, fields[0], new))
    assert (changed.container_id, changed.location, changed.timeout) == (new, second, number)


def test_every_method_of_the_cri_has_a_rule(proxy: RunningProxy) -> None:
    assert proxy.proxy is not None
    assert set(proxy.proxy.table.rules) == set(BY_NAME)


def test_a_call_that_went_round_in_a_circle_is_refused(client: Client, proxy: RunningProxy) -> None:
    assert proxy.proxy is not None
    version = client.raw("/runtime.v1.RuntimeService/Version")
    with pytest.raises(grpc.RpcError) as caught:
        version(b"", metadata=(("criproxy-loop", proxy.proxy.identity.decode()),))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "loop" in said(caught)
