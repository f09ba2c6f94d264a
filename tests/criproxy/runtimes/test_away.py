"""The truth while a runtime is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

Start = Callable[..., RunningProxy]
Connect = Callable[[Path | str], Client]


def gone(proxy: RunningProxy, runtime: FakeRuntime, name: str = VM) -> None:
    """Let a runtime go once the proxy has updated its inventory."""
    until(lambda: not proxy.runtime(name).last.outdated(10.0))
    runtime.stop()
    proxy.wait_until(name, answering=False)


def test_its_last_known_pods_and_containers_stay_listed(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    container = client.create(vm, image=f"{VM}/cirros")
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    gone(proxy, virtlet)
    assert client.pods() == {ordinary, vm}
    listed = client.containers()[container]
    assert listed.state == cri.CONTAINER_RUNNING
    assert listed.image.image == f"{VM}/cirros"


def test_an_answer_that_no_client_could_decode_is_not_kept(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    # A whole message, with an item in it that is none.
    virtlet.raw["ListPodSandbox"] = b"\x0a\x02\x0a\xff"
    raw = client.raw("/runtime.v1.RuntimeService/ListPodSandbox")
    assert raw(b"").endswith(virtlet.raw["ListPodSandbox"])
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    assert client.pods() == {ordinary, vm}


def gone_at_once(proxy: RunningProxy, runtime: FakeRuntime) -> None:
    """Let a runtime go before the proxy takes stock of what was just changed."""
    runtime.stop()
    proxy.wait_until(VM, answering=False)


def test_a_pod_made_just_before_it_went_is_listed(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    old = client.run_pod("a", target=VM)
    new = client.run_pod("b", handler="virtlet", color="green")
    container = client.create(new, image=f"{VM}/cirros")

    def listed() -> tuple[dict[str, Any], dict[str, Any]]:
        answer = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest())
        pods, containers = {pod.id: pod for pod in answer.items}, client.containers()
        for item in (*pods.values(), *containers.values()):
            # The proxy has its own clock.
            item.created_at = 0
        return pods, containers

    gone_at_once(proxy, virtlet)
    pods, containers = listed()
    assert (set(pods), set(containers)) == ({old, new}, {container})
    messages = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())
    assert {pod.id for message in messages for pod in message.pod_sandboxes} == {old, new}
    virtlet.start()
    proxy.wait_until(VM, answering=True)
    assert listed() == (pods, containers)


def test_states_just_reached_before_it_went_are_listed(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    runs, stopped, removed = (client.run_pod(name, target=VM) for name in ("a", "b", "c"))
    ids = {name: client.create(runs, name=name) for name in ("new", "runs", "ends", "goes")}
    inside = client.create(stopped)
    for name in ("ends", "goes"):
        client.runtime.StartContainer(cri.StartContainerRequest(container_id=ids[name]))
    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=ids["runs"]))
    client.runtime.StopContainer(cri.StopContainerRequest(container_id=ids["ends"]))
    client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=ids["goes"]))
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=stopped))
    client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=removed))
    # As the CRI wants it of StopPodSandbox.
    virtlet.containers[inside].state = cri.CONTAINER_EXITED
    gone_at_once(proxy, virtlet)
    answer = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest())
    assert {pod.id: pod.state for pod in answer.items} == {
        runs: cri.SANDBOX_READY,
        stopped: cri.SANDBOX_NOTREADY,
    }
    assert {some_id: c.state for some_id, c in client.containers().items()} == {
        ids["new"]: cri.CONTAINER_CREATED,
        ids["runs"]: cri.CONTAINER_RUNNING,
        ids["ends"]: cri.CONTAINER_EXITED,
        inside: cri.CONTAINER_EXITED,
    }


def test_images_pulled_just_before_it_went_fail_the_list_of_images_only(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    vm = client.run_pod(target=VM)
    lists = threading.Event()

    def list_images(request: Any, context: Any) -> Any:
        # The proxy gets no list that has the image, however slow the test is.
        lists.wait(20)
        return virtlet._ListImages(request, context)

    until(lambda: not proxy.runtime(VM).last.outdated(10.0))
    virtlet.instead["ListImages"] = list_images
    client.image.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=f"{VM}/cirros")))
    gone_at_once(proxy, virtlet)
    with pytest.raises(grpc.RpcError) as caught:
        client.image.ListImages(cri.ListImagesRequest())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert VM in said(caught)
    assert client.pods() == {vm}
    lists.set()
    virtlet.instead.clear()
    virtlet.start()
    proxy.wait_until(VM, answering=True)
    assert len(client.image.ListImages(cri.ListImagesRequest()).images) == 1


def test_filters_hold_for_last_known_items_too(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    stays, stopped = client.run_pod("a", target=VM), client.run_pod("b", target=VM)
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=stopped))
    containers = {pod: client.create(pod) for pod in (stays, stopped)}
    gone(proxy, virtlet)

    def pods(**wanted: Any) -> set[str]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**wanted))
        return {p.id for p in client.runtime.ListPodSandbox(request).items}

    assert pods(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == {stays}
    assert pods(id=stopped) == {stopped}
    assert pods(label_selector={"no": "such"}) == set()
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=stays))
    answer = client.runtime.ListContainers(request)
    assert {c.id for c in answer.containers} == {containers[stays]}


def test_statistics_of_one_pod_are_its_last_known_or_fail(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    old, other, new = (client.run_pod(name, target=VM) for name in ("a", "b", "c"))
    ids = {pod: client.create(pod) for pod in (old, other)}
    assert len(client.runtime.ListContainerStats(cri.ListContainerStatsRequest()).stats) == 2
    ids[new] = client.create(new)
    created = client.create(old, name="never started")
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=ids[new]))
    gone(proxy, virtlet)

    def stats(**wanted: Any) -> set[str]:
        request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))
        return {s.attributes.id for s in client.runtime.ListContainerStats(request).stats}

    assert stats(pod_sandbox_id=old) == {ids[old]}
    assert stats(pod_sandbox_id=other, id=ids[other]) == {ids[other]}
    assert stats(pod_sandbox_id=old, id=ids[other]) == set()
    # Runtimes have no statistics of what does not run.
    assert stats(id=created) == set()
    for wanted in ({"pod_sandbox_id": new}, {"id": ids[new]}):
        with pytest.raises(grpc.RpcError) as caught:
            stats(**wanted)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert VM in said(caught)


def test_calls_for_it_fail_at_once_and_name_it(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(pod)
    gone(proxy, virtlet)
    start = time.monotonic()
    for call in (
        lambda: client.run_pod("new", target=VM),
        lambda: client.create(pod),
        lambda: client.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container), timeout=20
        ),
        lambda: client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod)),
        lambda: client.image.PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=f"{VM}/cirros"))
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert VM in said(caught)
        assert str(virtlet.path) in said(caught)
    assert time.monotonic() - start < 8


def test_the_other_runtimes_pods_are_served_as_if_nothing_happened(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime, containerd: FakeRuntime
) -> None:
    client.run_pod("vm", target=VM)
    gone(proxy, virtlet)
    pod = client.run_pod("ordinary")
    container = client.create(pod)
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
    assert status.status.state == cri.CONTAINER_RUNNING
    client.image.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image="busybox")))
    client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
    # Also for ids that are nobody's any more.
    client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
    client.runtime.StopContainer(cri.StopContainerRequest(container_id="never-was"))
    assert pod not in client.pods()


def test_after_the_grace_period_lists_fail_and_name_it(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path}, grace=0.5)
    client = connect(proxy.config.listen)
    ordinary, vm = client.run_pod("a"), client.run_pod("b", target=VM)
    gone(proxy, virtlet)
    assert client.pods() == {ordinary, vm}
    until(lambda: not proxy.runtime(VM).within_grace())
    for call in (
        client.pods,
        client.containers,
        lambda: client.image.ListImages(cri.ListImagesRequest()),
        lambda: client.runtime.ListContainerStats(cri.ListContainerStatsRequest()),
        lambda: list(client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert VM in said(caught)
    wanted = cri.PodSandboxFilter(id=ordinary)
    only = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=wanted))
    assert [p.id for p in only.items] == [ordinary]
    client.image.ImageFsInfo(cri.ImageFsInfoRequest())
    virtlet.start()
    proxy.wait_until(VM, answering=True)
    assert client.pods() == {ordinary, vm}


def test_grace_can_be_set_for_one_runtime(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        grace=0.0,
        runtime_options={VM: {"grace": float("inf")}},
    )
    client = connect(proxy.config.listen)
    vm = client.run_pod(target=VM)
    gone(proxy, virtlet)
    assert vm in client.pods()


def test_a_runtime_that_was_never_there_adds_nothing_so_that_it_can_run_as_a_pod_here(
    start_proxy: Start, connect: Connect, containerd: FakeRuntime, run_dir: Path
) -> None:
    proxy = start_proxy({"containerd": containerd.path, VM: run_dir / "later.sock"}, grace=0.0)
    client = connect(proxy.config.listen)
    pod = client.run_pod()
    assert client.pods() == {pod}
    with pytest.raises(grpc.RpcError) as caught:
        client.run_pod(target=VM)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    later = FakeRuntime(run_dir / "later.sock", VM).start()
    try:
        proxy.wait_until(VM, answering=True)
        assert client.run_pod(target=VM) in later.sandboxes
    finally:
        later.stop()


def test_a_primary_that_was_never_there_fails_lists(
    start_proxy: Start, connect: Connect, virtlet: FakeRuntime, run_dir: Path
) -> None:
    proxy = start_proxy({"containerd": run_dir / "none.sock", VM: virtlet.path})
    client = connect(proxy.config.listen)
    for call in (client.pods, lambda: client.runtime.Version(cri.VersionRequest())):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "its socket is not there" in said(caught)


def test_calls_under_way_fail_when_it_goes(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    container = client.create(client.run_pod(target=VM))
    began, release = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> Any:
        began.set()
        release.wait(30)
        return cri.ExecSyncResponse()

    virtlet.instead["ExecSync"] = hang
    call = client.runtime.ExecSync.future(cri.ExecSyncRequest(container_id=container))
    assert began.wait(10)
    virtlet.stop()
    assert call.exception(timeout=20).code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    )
    release.set()


def test_an_image_that_only_it_has_is_not_called_absent(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    image = virtlet.add_image("cirros")
    client.image.ListImages(cri.ListImagesRequest())
    gone(proxy, virtlet)
    spec = cri.ImageSpec(image=image.id)
    for call, request in (
        (client.image.ImageStatus, cri.ImageStatusRequest(image=spec)),
        (client.image.RemoveImage, cri.RemoveImageRequest(image=spec)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    absent = cri.ImageSpec(image="sha256:" + "0" * 64)
    answer = client.image.ImageStatus(cri.ImageStatusRequest(image=absent))
    assert not answer.HasField("image")


def test_what_it_does_not_serve_is_missed_by_nobody_while_it_is_away(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    client.create(client.run_pod(target=VM))
    virtlet.missing.add("ListContainerStats")
    request = cri.ListContainerStatsRequest()
    assert not client.runtime.ListContainerStats(request).stats
    gone(proxy, virtlet)
    assert not client.runtime.ListContainerStats(request).stats
