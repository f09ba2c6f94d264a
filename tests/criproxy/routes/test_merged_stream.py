"""The Stream* lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri


def streamed(client: Client, wanted: cri.PodSandboxFilter | None = None) -> list[str]:
    messages = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=wanted))
    return [pod.id for message in messages for pod in message.pod_sandboxes]


def test_the_items_of_all_come_in_one_stream(client: Client) -> None:
    pods = {client.run_pod("a"), client.run_pod("b", target=VM), client.run_pod("c", target=VM)}
    assert set(streamed(client)) == pods


def test_an_id_narrows_it_to_the_owner(client: Client, containerd: FakeRuntime) -> None:
    pod = client.run_pod("b", target=VM)
    assert streamed(client, cri.PodSandboxFilter(id=pod)) == [pod]
    assert not containerd.called("StreamPodSandboxes")


def test_a_runtime_that_only_has_the_unary_form_is_asked_by_it(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.missing.add("StreamPodSandboxes")
    pods = {client.run_pod("a"), client.run_pod("b", target=VM)}
    assert set(streamed(client)) == pods


def test_runtimes_are_asked_side_by_side(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    pods = {client.run_pod("a"), client.run_pod("b", target=VM), client.run_pod("c")}
    both = threading.Barrier(2)

    def meet(runtime: FakeRuntime) -> Callable[[Any, Any], Iterator[Any]]:
        def answer(request: Any, context: Any) -> Iterator[Any]:
            # Passes only when the other is asked before this one has ended.
            both.wait(10)
            yield from runtime._StreamPodSandboxes(request, context)

        return answer

    for runtime in (containerd, virtlet):
        runtime.instead["StreamPodSandboxes"] = meet(runtime)
    assert set(streamed(client)) == pods


def test_a_filter_by_ids_of_two_runtimes_streams_nothing(client: Client) -> None:
    pod, other = client.run_pod("a"), client.run_pod("b", target=VM)
    wanted = cri.ContainerFilter(pod_sandbox_id=pod, id=client.create(other))
    request = cri.StreamContainersRequest(filter=wanted)
    assert not list(client.runtime.StreamContainers(request))


def test_another_runtimes_error_does_not_hide_that_the_primary_does_not_know_it(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    failed = threading.Event()

    def fail(request: Any, context: Any) -> Any:
        context.add_callback(failed.set)
        context.abort(grpc.StatusCode.INTERNAL, "no idea")

    def refuse(request: Any, context: Any) -> Any:
        failed.wait(10)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown")

    virtlet.instead["StreamPodSandboxes"] = fail
    containerd.instead["StreamPodSandboxes"] = refuse
    with pytest.raises(grpc.RpcError) as caught:
        streamed(client)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_primary_without_it_makes_clients_use_the_unary_form(
    client: Client, containerd: FakeRuntime
) -> None:
    containerd.missing.add("StreamPodSandboxes")
    client.run_pod("b", target=VM)
    with pytest.raises(grpc.RpcError) as caught:
        streamed(client)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_last_known_items_of_a_runtime_that_is_away_are_streamed(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    pods = {client.run_pod("a"), client.run_pod("b", target=VM)}
    assert client.pods() == pods
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    assert set(streamed(client)) == pods


def test_image_names_get_their_prefix(client: Client, virtlet: FakeRuntime) -> None:
    image = virtlet.add_image("cirros")
    virtlet.instead["StreamImages"] = lambda request, context: iter(
        [cri.StreamImagesResponse(images=[image])]
    )
    wanted = cri.ImageFilter(image=cri.ImageSpec(image=f"{VM}/cirros"))
    messages = client.image.StreamImages(cri.StreamImagesRequest(filter=wanted))
    assert [tag for m in messages for i in m.images for tag in i.repo_tags] == [f"{VM}/cirros"]
    assert virtlet.called("StreamImages")[0].filter.image.image == "cirros"
