"""Which runtime a new pod goes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri


def test_a_pod_that_says_nothing_goes_to_the_primary(
    client: Client, containerd: FakeRuntime
) -> None:
    assert client.run_pod() in containerd.sandboxes


def test_the_annotation_names_the_runtime(client: Client, virtlet: FakeRuntime) -> None:
    assert client.run_pod(target=VM) in virtlet.sandboxes


def test_the_annotation_can_name_the_primary(client: Client, containerd: FakeRuntime) -> None:
    assert client.run_pod(target="containerd") in containerd.sandboxes


@pytest.mark.parametrize(("handler", "there"), [("virtlet", VM), ("runc", "containerd")])
def test_a_handler_goes_to_the_runtime_that_reports_it(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, handler: str, there: str
) -> None:
    pod = client.run_pod(handler=handler)
    runtime = virtlet if there == VM else containerd
    assert runtime.sandboxes[pod].runtime_handler == handler


def test_a_runtimes_name_is_a_handler_that_stands_for_its_default(
    client: Client, virtlet: FakeRuntime
) -> None:
    assert virtlet.sandboxes[client.run_pod(handler=VM)].runtime_handler == ""


def test_handler_and_annotation_that_agree_are_fine(client: Client, virtlet: FakeRuntime) -> None:
    assert client.run_pod(handler="virtlet", target=VM) in virtlet.sandboxes


def test_handler_and_annotation_that_contradict_each_other_are_refused_with_both_named(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.run_pod(handler="runc", target=VM)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'runc' is served by containerd" in said(caught)
    assert VM in said(caught)
    assert not containerd.sandboxes
    assert not virtlet.sandboxes


def test_an_unknown_runtime_in_the_annotation_is_refused_with_the_choices(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.run_pod(target="kata")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'kata'" in said(caught)
    assert "containerd, virtlet.cloud" in said(caught)


def test_an_unknown_handler_is_refused_with_the_choices(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.run_pod(handler="kata")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "containerd serves containerd, runc" in said(caught)
    assert "virtlet.cloud serves virtlet, virtlet.cloud" in said(caught)


def test_a_primary_that_does_not_tell_its_handlers_judges_them_itself(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    containerd.handlers = ()
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path})
    pod = connect(proxy.config.listen).run_pod(handler="nvidia")
    assert containerd.sandboxes[pod].runtime_handler == "nvidia"


def test_a_handler_that_both_report_stays_with_the_primary(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    virtlet.handlers = ("runc",)
    proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path})
    assert connect(proxy.config.listen).run_pod(handler="runc") in containerd.sandboxes


def test_the_configuration_wins_over_what_runtimes_report(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
) -> None:
    proxy = start_proxy(
        {"containerd": containerd.path, VM: virtlet.path},
        runtime_options={VM: {"handlers": ("runc",)}},
    )
    assert connect(proxy.config.listen).run_pod(handler="runc") in virtlet.sandboxes


def test_two_others_with_one_handler_are_refused_until_the_annotation_says_which(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    virtlet: FakeRuntime,
    run_dir: Path,
) -> None:
    third = FakeRuntime(run_dir / "c.sock", "third", handlers=("virtlet",)).start()
    try:
        proxy = start_proxy({"containerd": containerd.path, VM: virtlet.path, "third": third.path})
        client = connect(proxy.config.listen)
        with pytest.raises(grpc.RpcError) as caught:
            client.run_pod(handler="virtlet")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "virtlet.cloud and third" in said(caught)
        assert client.run_pod(handler="virtlet", target="third") in third.sandboxes
    finally:
        third.stop()


def test_a_restored_pod_is_routed_like_a_new_one_and_its_containers_are_known(
    client: Client, virtlet: FakeRuntime
) -> None:
    virtlet.instead["RestorePod"] = lambda request, context: cri.RestorePodResponse(
        pod_sandbox_id="restored",
        restored_containers=[cri.RestoredContainer(name="main", container_id="main-id")],
    )
    virtlet.instead["StopContainer"] = lambda request, context: cri.StopContainerResponse()
    config = cri.PodSandboxConfig(annotations={"kubernetes.io/target-runtime": VM})
    image = cri.ContainerConfig(image=cri.ImageSpec(image=f"{VM}/cirros"))
    client.runtime.RestorePod(cri.RestorePodRequest(config=config, container_configs=[image]))
    client.runtime.StopContainer(cri.StopContainerRequest(container_id="main-id"))
    assert virtlet.called("RestorePod")[0].container_configs[0].image.image == "cirros"
    assert virtlet.called("StopContainer")
