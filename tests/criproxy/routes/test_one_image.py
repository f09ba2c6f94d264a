"""Calls about images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

TARGET = "kubernetes.io/target-runtime"
SEEN = "kubernetes.io/config.seen"


def pull(client: Client, image: cri.ImageSpec, **more: Any) -> str:
    answer = client.image.PullImage(cri.PullImageRequest(image=image, **more))
    return str(answer.image_ref)


def status(client: Client, image: str, **more: Any) -> Any:
    spec = cri.ImageSpec(image=image, **more)
    return client.image.ImageStatus(cri.ImageStatusRequest(image=spec))


def test_a_name_goes_to_the_primary_as_it_is(client: Client, containerd: FakeRuntime) -> None:
    pull(client, cri.ImageSpec(image="busybox:1"))
    assert containerd.called("PullImage")[0].image.image == "busybox:1"


def test_a_runtimes_prefix_is_taken_off_on_the_way_in_and_put_on_on_the_way_out(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    image = virtlet.add_image("example.com/cirros:1")
    image.repo_digests.append("example.com/cirros@sha256:" + "1" * 64)
    answer = status(client, f"{VM}/example.com/cirros:1").image
    assert virtlet.called("ImageStatus")[0].image.image == "example.com/cirros:1"
    assert list(answer.repo_tags) == [f"{VM}/example.com/cirros:1"]
    assert list(answer.repo_digests) == [f"{VM}/example.com/cirros@sha256:" + "1" * 64]
    assert answer.id == image.id
    assert not containerd.called("ImageStatus")


def test_the_name_as_the_user_wrote_it_counts_when_the_image_is_given_by_id(
    client: Client, virtlet: FakeRuntime
) -> None:
    image = virtlet.add_image("cirros")
    assert status(client, image.id, user_specified_image=f"{VM}/cirros").image.id == image.id
    assert virtlet.called("ImageStatus")[0].image.user_specified_image == "cirros"


def test_the_pods_annotation_says_where_to_pull(client: Client, virtlet: FakeRuntime) -> None:
    pod = cri.PodSandboxConfig(annotations={TARGET: VM})
    pull(client, cri.ImageSpec(image="cirros"), sandbox_config=pod)
    pull(client, cri.ImageSpec(image="cirros", annotations={TARGET: VM}))
    assert len(virtlet.called("PullImage")) == 2


def test_the_handler_says_where_to_pull(client: Client, virtlet: FakeRuntime) -> None:
    pull(client, cri.ImageSpec(image="cirros", runtime_handler="virtlet"))
    assert virtlet.called("PullImage")


def test_a_pod_that_runs_already_says_where_to_pull(client: Client, virtlet: FakeRuntime) -> None:
    client.run_pod("vm", handler="virtlet")
    pod = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="vm", uid="uid-vm"))
    pull(client, cri.ImageSpec(image="cirros"), sandbox_config=pod)
    assert virtlet.called("PullImage")


def test_contradicting_hints_are_refused_with_each_named(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    pod = cri.PodSandboxConfig(annotations={TARGET: "containerd"})
    with pytest.raises(grpc.RpcError) as caught:
        pull(client, cri.ImageSpec(image=f"{VM}/cirros"), sandbox_config=pod)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"its name '{VM}/cirros' says {VM}" in said(caught)
    assert "its pod's annotations says containerd" in said(caught)
    assert not containerd.called("PullImage")
    assert not virtlet.called("PullImage")


def test_an_id_goes_to_the_runtime_that_has_it(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    here, there = containerd.add_image("busybox"), virtlet.add_image("cirros")
    assert list(status(client, here.id).image.repo_tags) == ["busybox"]
    assert list(status(client, there.id).image.repo_tags) == [f"{VM}/cirros"]
    assert status(client, there.id.removeprefix("sha256:")).image.id == ""


def test_the_beginning_of_an_id_goes_to_the_runtime_that_has_it(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    here, there = "sha256:" + "3f47" * 16, "sha256:" + "3f99" * 16
    containerd.add_image("busybox", here)
    virtlet.add_image("cirros", there)
    assert list(status(client, "3f473f473f473").image.repo_tags) == ["busybox"]
    assert list(status(client, "3f993f993f993").image.repo_tags) == [f"{VM}/cirros"]
    assert list(status(client, "sha256:3f99").image.repo_tags) == [f"{VM}/cirros"]
    assert not status(client, "0000").HasField("image")
    wanted = cri.ImageFilter(image=cri.ImageSpec(image=there))
    assert len(client.image.ListImages(cri.ListImagesRequest(filter=wanted)).images) == 1
    with pytest.raises(grpc.RpcError) as caught:
        status(client, "3f")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"{here} of containerd, {there} of {VM}" in said(caught)
    client.image.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image="3f993")))
    assert not virtlet.images
    assert containerd.images


def test_a_name_of_the_primary_is_not_taken_for_the_beginning_of_an_id(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    named = containerd.add_image("cafe", "sha256:" + "0" * 64)
    virtlet.add_image("cirros", "sha256:" + "cafe" * 16)
    assert status(client, "cafe").image.id == named.id
    client.image.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image="beef")))
    assert [r.image.image for r in containerd.called("PullImage")] == ["beef"]


def test_an_id_that_nobody_has_is_absent(client: Client) -> None:
    assert not status(client, "sha256:" + "0" * 64).HasField("image")


def test_an_id_that_two_have_is_removed_from_both(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    image_id = "sha256:" + "a" * 64
    containerd.add_image("one", image_id)
    virtlet.add_image("two", image_id)
    client.image.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image_id)))
    assert not containerd.images
    assert not virtlet.images


def test_a_pulled_reference_can_be_asked_for_and_run(client: Client, virtlet: FakeRuntime) -> None:
    ref = pull(client, cri.ImageSpec(image=f"{VM}/cirros"))
    assert status(client, ref).image.id == ref
    pod = client.run_pod(target=VM)
    container = client.create(pod, image=ref)
    assert virtlet.containers[container].image.image == ref


def test_a_reference_that_is_a_name_comes_out_with_the_prefix(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.instead["PullImage"] = lambda request, context: cri.PullImageResponse(
        image_ref="example.com/cirros@sha256:" + "2" * 64
    )
    ref = pull(client, cri.ImageSpec(image=f"{VM}/example.com/cirros"))
    assert ref == f"{VM}/example.com/cirros@sha256:" + "2" * 64


def test_a_filtered_list_asks_only_the_runtime_whose_name_it_is(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    containerd.add_image("cirros")
    virtlet.add_image("cirros")

    def listed(name: str) -> list[str]:
        request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=name)))
        return [tag for i in client.image.ListImages(request).images for tag in i.repo_tags]

    assert listed("cirros") == ["cirros"]
    assert listed(f"{VM}/cirros") == [f"{VM}/cirros"]
    assert listed("") == ["cirros", f"{VM}/cirros"]


def test_container_images_come_out_with_the_prefix_wherever_they_are_told(
    client: Client, virtlet: FakeRuntime
) -> None:
    pod = client.run_pod(target=VM)
    container = client.create(pod, image=f"{VM}/cirros")
    assert virtlet.containers[container].image.image == "cirros"
    listed = client.containers()[container]
    assert (listed.image.image, listed.image_ref) == (f"{VM}/cirros", f"{VM}/cirros")
    one = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
    assert one.status.image.image == f"{VM}/cirros"
    of_pod = client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert of_pod.containers_statuses[0].image.image == f"{VM}/cirros"


def test_image_volumes_lose_their_prefix_too(client: Client, virtlet: FakeRuntime) -> None:
    pod = client.run_pod(target=VM)
    config = cri.ContainerConfig(
        image=cri.ImageSpec(image="x"),
        mounts=[cri.Mount(container_path="/d", image=cri.ImageSpec(image=f"{VM}/data"))],
    )
    client.runtime.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    assert virtlet.called("CreateContainer")[0].config.mounts[0].image.image == "data"


def test_a_list_asked_for_before_the_pod_was_made_does_not_hide_whose_the_pod_is(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow(request: Any, context: Any) -> Any:
        before = virtlet._ListPodSandbox(request, context)
        asked.set()
        release.wait(5)
        return before

    virtlet.instead["ListPodSandbox"] = slow
    listing = client.runtime.ListPodSandbox.future(cri.ListPodSandboxRequest())
    assert asked.wait(5)
    client.run_pod("x", handler="virtlet")
    answers = proxy.runtime(VM).last.answers
    before = answers["ListPodSandbox"]
    release.set()
    listing.result(timeout=5)
    # Ids in clients' lists are learnt a little later.
    until(lambda: answers["ListPodSandbox"] is not before)
    pod = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="x", uid="uid-x"))
    pull(client, cri.ImageSpec(image="cirros"), sandbox_config=pod)
    assert virtlet.called("PullImage")
    assert not containerd.called("PullImage")


def test_a_digest_that_only_one_runtime_has_leads_there(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    digest = "sha256:" + "a" * 64
    theirs = virtlet.add_image("cirros")
    theirs.repo_digests.append(f"example.com/cirros@{digest}")
    client.image.ListImages(cri.ListImagesRequest())
    # Ids and digests in clients' lists are learnt a little later.
    until(lambda: proxy.runtime(VM).last.digests)
    name = f"cirros@{digest}"
    status(client, name)
    wanted = cri.ImageFilter(image=cri.ImageSpec(image=name))
    client.image.ListImages(cri.ListImagesRequest(filter=wanted))
    for runtime, asked in ((virtlet, 1), (containerd, 0)):
        assert len([r for r in runtime.called("ImageStatus") if r.image.image == name]) == asked
        assert len([r for r in runtime.called("ListImages") if r.filter == wanted]) == asked


def test_a_digest_that_both_have_or_nobody_has_is_the_primarys(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    digests = ["sha256:" + letter * 64 for letter in "ab"]
    for runtime in (containerd, virtlet):
        runtime.add_image("cirros").repo_digests.append(f"cirros@{digests[0]}")
    client.image.ListImages(cri.ListImagesRequest())
    until(lambda: all(proxy.runtime(name).last.digests for name in ("containerd", VM)))
    for digest in digests:
        status(client, f"cirros@{digest}")
    assert len(containerd.called("ImageStatus")) == 2
    assert not virtlet.called("ImageStatus")


def annotated(seen: str, **more: str) -> dict[str, str]:
    """Annotations as a kubelet sends them with a pod, and with its images."""
    return {SEEN: seen, "kubernetes.io/config.source": "api", **more}


def test_a_kubelet_pulls_for_a_vm_what_containers_have_under_the_same_name(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    theirs = containerd.add_image("registry/fedora:41")
    of_vm, of_container = annotated("1", app="x"), annotated("2", app="x")
    vm = client.run_pod("vm", handler="virtlet", **of_vm)
    client.run_pod("container", **of_container)
    assert status(client, "registry/fedora:41", annotations=of_container).image.id == theirs.id
    assert not status(client, "registry/fedora:41", annotations=of_vm).HasField("image")
    spec = cri.ImageSpec(image="registry/fedora:41", annotations=of_vm)
    metadata = cri.PodSandboxMetadata(name="vm", uid="uid-vm", namespace="default")
    pod = cri.PodSandboxConfig(metadata=metadata, annotations=of_vm)
    ours = pull(client, spec, sandbox_config=pod)
    assert ours != theirs.id
    assert status(client, "registry/fedora:41", annotations=of_vm).image.id == ours
    assert status(client, "registry/fedora:41", annotations=of_container).image.id == theirs.id
    container = client.create(vm, image=ours)
    assert virtlet.containers[container].image.image == ours
    images = client.image.ListImages(cri.ListImagesRequest()).images
    assert {i.id: list(i.repo_tags) for i in images} == {
        theirs.id: ["registry/fedora:41"],
        ours: [f"{VM}/registry/fedora:41"],
    }
    client.image.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=ours)))
    assert (list(containerd.images), list(virtlet.images)) == ([theirs.id], [])


def test_a_container_pod_is_not_served_a_vms_image_of_its_name(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.add_image("fedora:41")
    client.run_pod("container", **annotated("1"))
    assert not status(client, "fedora:41", annotations=annotated("1")).HasField("image")
    # Nobody knows this pod: what it is told is absent is pulled where the pod is.
    assert not status(client, "fedora:41", annotations=annotated("9")).HasField("image")


def test_a_pods_other_annotations_tell_it_after_the_kubelet_started_again(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    theirs, ours = containerd.add_image("fedora:41"), virtlet.add_image("fedora:41")
    client.run_pod("vm", handler="virtlet", **annotated("1", app="vm"))
    client.run_pod("container", **annotated("2", app="container"))
    answer = status(client, "fedora:41", annotations=annotated("3", app="vm"))
    assert answer.image.id == ours.id
    answer = status(client, "fedora:41", annotations=annotated("4", app="container"))
    assert answer.image.id == theirs.id


def test_pods_from_before_the_proxys_start_are_told_by_their_annotations_too(
    client: Client,
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
) -> None:
    containerd.add_image("fedora:41")
    client.run_pod("vm", handler="virtlet", **annotated("1"))
    sockets = {"containerd": containerd.path, VM: virtlet.path}
    again = connect(start_proxy(sockets, "again.sock").config.listen)
    assert not status(again, "fedora:41", annotations=annotated("1")).HasField("image")


def test_a_name_without_prefix_of_no_pod_is_asked_for_everywhere_the_primary_first(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    ours = virtlet.add_image("fedora:41")
    assert status(client, "fedora:41").image.id == ours.id
    assert list(status(client, "fedora:41").image.repo_tags) == [f"{VM}/fedora:41"]
    cafe = virtlet.add_image("cafe")
    assert status(client, "cafe").image.id == cafe.id
    theirs = containerd.add_image("fedora:41")
    virtlet.calls.clear()
    assert status(client, "fedora:41").image.id == theirs.id
    assert not virtlet.called("ImageStatus")
    assert not status(client, "nothing:1").HasField("image")


def test_removing_by_a_name_removes_what_a_status_of_the_name_shows(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    ours, theirs = virtlet.add_image("fedora:41"), containerd.add_image("fedora:41")
    request = cri.RemoveImageRequest(image=cri.ImageSpec(image="fedora:41"))
    client.image.RemoveImage(request)
    assert (list(containerd.images), list(virtlet.images)) == ([], [ours.id])
    client.image.RemoveImage(request)
    assert not virtlet.images
    client.image.RemoveImage(request)
    assert theirs.id not in containerd.images


def test_no_image_of_another_is_removed_by_a_name_that_a_runtime_away_may_have(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    ours = virtlet.add_image("fedora:41")
    containerd.stop()
    until(lambda: not proxy.runtime("containerd").answering)
    with pytest.raises(grpc.RpcError) as caught:
        client.image.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image="fedora:41")))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert list(virtlet.images) == [ours.id]


def test_a_container_gets_its_own_runtimes_image_where_the_id_is_of_another(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    theirs = containerd.add_image("fedora:41")
    client.image.ListImages(cri.ListImagesRequest())
    until(lambda: proxy.runtime("containerd").last.images)
    pod = client.run_pod("vm", handler="virtlet")
    spec = cri.ImageSpec(image=theirs.id, user_specified_image=f"{VM}/fedora:41")
    client.runtime.CreateContainer(
        cri.CreateContainerRequest(pod_sandbox_id=pod, config=cri.ContainerConfig(image=spec))
    )
    assert virtlet.called("CreateContainer")[0].config.image.image == "fedora:41"
