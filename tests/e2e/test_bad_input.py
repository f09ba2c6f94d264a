"""Every malformed request gets a clear status and message, and changes nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.core.cri import bad_fields
from tests.e2e.conftest import PodFactory, make_manifest
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

PodEdit = Callable[[cri.PodSandboxConfig], object]
VmEdit = Callable[[cri.ContainerConfig], object]


def _annotate(name: str, value: str) -> PodEdit:
    return lambda config: config.annotations.update({name: value})


def _host(name: str) -> PodEdit:
    def edit(config: cri.PodSandboxConfig) -> None:
        options = config.linux.security_context.namespace_options
        setattr(options, name, cri.NamespaceMode.NODE)

    return edit


def _set(name: str, value: Any) -> Callable[[Any], object]:
    def edit(config: Any) -> None:
        *path, last = name.split(".")
        for part in path:
            config = getattr(config, part)
        setattr(config, last, value)

    return edit


BAD_PODS: list[tuple[str, PodEdit, str]] = [
    ("no name", _set("metadata.name", ""), "metadata.name is empty"),
    ("no uid", _set("metadata.uid", ""), "metadata.uid is empty"),
    ("no namespace", _set("metadata.namespace", ""), "metadata.namespace is empty"),
    ("a slash in the name", _set("metadata.name", "a/b"), "metadata.name 'a/b' must be a name"),
    ("an endless name", _set("metadata.name", "a" * 300), "at most 253 bytes"),
    (
        "a relative log directory",
        _set("log_directory", "logs"),
        "log_directory 'logs' must be an absolute path",
    ),
    ("host network", _host("network"), "take hostNetwork out of the pod"),
    ("host pid", _host("pid"), "take hostPID out of the pod"),
    ("host ipc", _host("ipc"), "take hostIPC out of the pod"),
    ("privileged", _set("linux.security_context.privileged", True), "privileged pod cannot be"),
    ("cgroup out of the tree", _set("linux.cgroup_parent", "/a/../../b"), "without '..'"),
    ("no number of vCPUs", _annotate("VirtletVCPUCount", "many"), "VirtletVCPUCount: 'many'"),
    ("too many vCPUs", _annotate("VirtletVCPUCount", "256"), "not between 1 and 255"),
    ("an unknown bus", _annotate("VirtletDiskDriver", "ide"), "VirtletDiskDriver"),
    ("a bad quantity", _annotate("VirtletRootVolumeSize", "12XB"), "VirtletRootVolumeSize"),
    ("a bad UUID", _annotate("VirtletSystemUUID", "zz"), "VirtletSystemUUID"),
    ("user-data that is a list", _annotate("VirtletCloudInitUserData", "[1]"), "UserData"),
    ("an annotation of 10 MB", _annotate("note", "x" * (10 << 20)), "'note' the most"),
    ("a misspelt annotation", _annotate("VirtletVCPUCont", "1"), "did you mean VirtletVCPUCount"),
]


@pytest.mark.parametrize(
    ("edit", "message"), [b[1:] for b in BAD_PODS], ids=[b[0] for b in BAD_PODS]
)
def test_a_malformed_pod_is_refused_and_leaves_nothing(
    node: Playground, edit: PodEdit, message: str
) -> None:
    manifest = make_manifest(node)
    edit(manifest.pod)
    with node.client() as client:
        before, pods = node.leftovers(), client.pods()
        with pytest.raises(CallFailed) as caught:
            client.run_pod(manifest.pod)
        assert caught.value.code.name == "INVALID_ARGUMENT"
        assert message in caught.value.details
        assert node.settled_leftovers(before) == []
        assert client.pods() == pods


def test_a_secret_in_a_bad_annotation_is_not_in_the_error_or_the_log(node: Playground) -> None:
    manifest = make_manifest(node)
    manifest.pod.annotations["VirtletCloudInitUserData"] = "password: [hunter2"
    with node.client() as client, pytest.raises(CallFailed) as caught:
        client.run_pod(manifest.pod)
    assert "VirtletCloudInitUserData" in caught.value.details
    assert "hunter2" not in caught.value.details
    assert "hunter2" not in node.log_file.read_text()


def test_an_unknown_handler_is_refused_with_the_known_ones(node: Playground) -> None:
    manifest = make_manifest(node)
    with node.client() as client, pytest.raises(CallFailed, match="known handlers: ''") as caught:
        client.run_pod(manifest.pod, "nowhere")
    assert caught.value.code.name == "INVALID_ARGUMENT"


BAD_VMS: list[tuple[str, VmEdit, str, str]] = [
    ("no name", _set("metadata.name", ""), "INVALID_ARGUMENT", "metadata.name is empty"),
    ("no image", _set("image.image", ""), "INVALID_ARGUMENT", "needs an image"),
    ("an absent image", _set("image.image", "virtlet.cloud/gone"), "NOT_FOUND", "pull it first"),
    ("a log outside", _set("log_path", "../x"), "INVALID_ARGUMENT", "in the pod's log"),
    (
        "privileged",
        _set("linux.security_context.privileged", True),
        "INVALID_ARGUMENT",
        "privileged container cannot be a VM",
    ),
    (
        "the node's processes",
        _set("linux.security_context.namespace_options.pid", cri.NamespaceMode.NODE),
        "INVALID_ARGUMENT",
        "take hostPID out of the pod",
    ),
    (
        "another container's processes",
        _set("linux.security_context.namespace_options.pid", cri.NamespaceMode.TARGET),
        "INVALID_ARGUMENT",
        "take targetContainerName out of the container",
    ),
    (
        "negative memory",
        _set("linux.resources.memory_limit_in_bytes", -1),
        "INVALID_ARGUMENT",
        "memory_limit_in_bytes is negative",
    ),
    (
        "a relative mount",
        lambda config: config.mounts.add(container_path="data", host_path="/tmp"),
        "INVALID_ARGUMENT",
        "mounts: container_path 'data' must be",
    ),
    (
        "an environment that is no text",
        lambda config: config.envs.add(key="KEY", value=b"\xff"),
        "INVALID_ARGUMENT",
        "the value of 'KEY'",
    ),
]


@pytest.mark.parametrize(
    ("edit", "code", "message"), [b[1:] for b in BAD_VMS], ids=[b[0] for b in BAD_VMS]
)
def test_a_malformed_container_is_refused_and_leaves_the_pod_as_it_was(
    node: Playground, new_pod: PodFactory, edit: VmEdit, code: str, message: str
) -> None:
    pod = new_pod().run()
    pod.client.pull(pod.image, pod.pod)
    config = pod.config()
    edit(config)
    before = node.leftovers()
    with pytest.raises(CallFailed) as caught:
        pod.client.create(pod.id, config, pod.pod)
    assert caught.value.code.name == code
    assert message in caught.value.details
    assert node.settled_leftovers(before) == []
    assert pod.client.containers(pod.id) == []


def test_no_field_that_cannot_be_reaches_the_node(node: Playground, new_pod: PodFactory) -> None:
    """All fields of tests/core/cri through the real socket: each is refused, nothing is made."""

    def refused(title: str, says: str, call: Callable[[], object]) -> str:
        try:
            call()
        except CallFailed as error:
            good = error.code.name == "INVALID_ARGUMENT" and error.details.startswith(says)
            return "" if good else f"{title}: {error}"
        return f"{title}: taken"

    pod = new_pod().run().create()
    pod.client.remove(pod.vm)
    before, pods = node.leftovers(), pod.client.pods()
    answers = []
    for title, edit, says in bad_fields.PODS:
        manifest = make_manifest(node)
        edit(manifest.pod)
        answers.append(refused(title, says, partial(pod.client.run_pod, manifest.pod)))
    for title, edit, says in bad_fields.VMS:
        config = pod.config(attempt=1)
        edit(config)
        answers.append(refused(title, says, partial(pod.client.create, pod.id, config, pod.pod)))
    too_long = "a/" * 2040 + "0.log"
    config.CopyFrom(pod.config(attempt=1))
    config.log_path = too_long
    call = partial(pod.client.create, pod.id, config, pod.pod)
    answers.append(refused("a log too long with its directory", "log_path 'a/a/", call))
    assert [answer for answer in answers if answer] == []
    assert node.settled_leftovers(before) == []
    assert pod.client.pods() == pods
    assert pod.client.containers(pod.id) == []
    assert [path.name for path in (node.data_dir / "pods").iterdir()] == [p.id for p in pods]
    assert list((node.data_dir / "volumes").iterdir()) == []
    assert bad_fields.SECRET not in node.log_file.read_text()


REQUESTS: list[tuple[str, object, str]] = [
    ("RunPodSandbox", cri.RunPodSandboxRequest(), "INVALID_ARGUMENT"),
    ("StopPodSandbox", cri.StopPodSandboxRequest(), "INVALID_ARGUMENT"),
    ("RemovePodSandbox", cri.RemovePodSandboxRequest(), "INVALID_ARGUMENT"),
    ("PodSandboxStatus", cri.PodSandboxStatusRequest(), "INVALID_ARGUMENT"),
    ("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id="x"), "NOT_FOUND"),
    ("CreateContainer", cri.CreateContainerRequest(), "INVALID_ARGUMENT"),
    ("StartContainer", cri.StartContainerRequest(), "INVALID_ARGUMENT"),
    ("StartContainer", cri.StartContainerRequest(container_id="x"), "NOT_FOUND"),
    ("StopContainer", cri.StopContainerRequest(container_id="x", timeout=-1), "INVALID_ARGUMENT"),
    ("RemoveContainer", cri.RemoveContainerRequest(), "INVALID_ARGUMENT"),
    ("ContainerStatus", cri.ContainerStatusRequest(container_id="x"), "NOT_FOUND"),
    ("ReopenContainerLog", cri.ReopenContainerLogRequest(container_id="x"), "NOT_FOUND"),
    ("PullImage", cri.PullImageRequest(), "INVALID_ARGUMENT"),
    ("ImageStatus", cri.ImageStatusRequest(), "INVALID_ARGUMENT"),
    ("RemoveImage", cri.RemoveImageRequest(), "INVALID_ARGUMENT"),
    ("CheckpointContainer", cri.CheckpointContainerRequest(), "INVALID_ARGUMENT"),
    ("CheckpointContainer", cri.CheckpointContainerRequest(container_id="x"), "INVALID_ARGUMENT"),
    ("CheckpointPod", cri.CheckpointPodRequest(), "INVALID_ARGUMENT"),
    ("RestorePod", cri.RestorePodRequest(), "INVALID_ARGUMENT"),
    ("RestorePod", cri.RestorePodRequest(checkpoint_path="/tmp"), "INVALID_ARGUMENT"),
]


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    REQUESTS,
    ids=[f"{method}-{code}" for method, _, code in REQUESTS],
)
def test_a_request_without_what_it_needs_is_refused(
    node: Playground, method: str, request_: object, code: str
) -> None:
    with node.client() as client, pytest.raises(CallFailed) as caught:
        client.call(method, request_)
    assert caught.value.code.name == code
    assert caught.value.details


def test_a_pod_cidr_that_is_none_is_refused(node: Playground) -> None:
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="10.0.0.0/99"))
    request = cri.UpdateRuntimeConfigRequest(runtime_config=config)
    with (
        node.client() as client,
        pytest.raises(CallFailed, match=r"'10.0.0.0/99' is not a network"),
    ):
        client.call("UpdateRuntimeConfig", request)


def test_an_image_that_is_no_disk_is_refused_and_not_kept(node: Playground, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html>not found</html>" * 100)
    with node.client() as client:
        before = client.call("ListImages", cri.ListImagesRequest()).images
        with pytest.raises(CallFailed) as caught:
            client.pull(f"file://{page}")
        assert caught.value.code.name == "INVALID_ARGUMENT"
        assert client.call("ListImages", cri.ListImagesRequest()).images == before


def test_the_same_pod_with_another_configuration_is_refused(new_pod: PodFactory) -> None:
    pod = new_pod().run()
    pod.pod.labels["changed"] = "yes"
    with pytest.raises(CallFailed, match="exists with another configuration") as caught:
        pod.run()
    assert caught.value.code.name == "ALREADY_EXISTS"
