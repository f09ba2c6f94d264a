"""Our client sends what a kubelet sends, and nothing that it does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.criproxy.fakes.runtime import FakeRuntime
from tests.fakes import kubelet
from virtlet.cli.client import Client
from virtlet.cli.ending import CommandFailed
from virtlet.cli.main import group
from virtlet.cli.manifest import PodManifest, pod_manifest, read_manifest
from virtlet.cli.steps import ensure_image
from virtlet.cri import api_pb2 as cri

POD = {
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "runtimeClassName": "virtlet",
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsUser": 1000,
            "fsGroup": 2000,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}],
        },
        "overhead": {"cpu": "100m", "memory": "160Mi"},
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["10.96.0.10"],
            "searches": ["cluster.local"],
            "options": [{"name": "ndots", "value": "5"}],
        },
        "volumes": [{"name": "h", "hostPath": {"path": "/srv"}}],
        "containers": [
            {
                "name": "guest",
                "image": "virtlet.cloud/tiny",
                "stdin": True,
                "tty": True,
                "env": [{"name": "GREETING", "value": "hello"}],
                "ports": [{"name": "http", "containerPort": 80, "hostPort": 8088}],
                "resources": {"limits": {"cpu": 1, "memory": "128Mi"}, "requests": {"cpu": "50m"}},
                "volumeMounts": [
                    {
                        "name": "h",
                        "mountPath": "/h",
                        "readOnly": True,
                        "mountPropagation": "HostToContainer",
                    }
                ],
            }
        ],
    },
}
"""Asks for what the recorded pod of this name asked for, as far as there is no cluster."""


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[FakeRuntime]:
    """A runtime that notes what it is asked."""
    runtime = FakeRuntime(tmp_path / "r.sock", "fake").start()
    yield runtime
    runtime.stop()


@pytest.fixture
def virtlet(runtime: FakeRuntime) -> Callable[..., None]:
    """Runs a command against the runtime."""

    def run(command: str, *arguments: str) -> None:
        group.main([command, *arguments, "--socket", str(runtime.path)], standalone_mode=False)

    return run


def _written(tmp_path: Path, document: dict[str, Any] = POD) -> Path:
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_pod_goes_up_and_down_with_no_field_that_no_kubelet_was_seen_to_set(
    runtime: FakeRuntime, virtlet: Callable[..., None], tmp_path: Path
) -> None:
    virtlet("run", str(_written(tmp_path)), "--log-root", str(tmp_path))
    virtlet("ps")
    virtlet("stop", "web")
    virtlet("rm", "web")
    assert {method for method, _ in runtime.calls} >= {
        "RunPodSandbox",
        "ImageStatus",
        "PullImage",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemovePodSandbox",
    }
    for method, request in runtime.calls:
        assert kubelet.unrecorded(method, request) == set(), method


def test_a_request_of_the_tests_with_a_field_that_no_kubelet_sends_fails() -> None:
    image = cri.ImageSpec(image="virtlet.cloud/tiny:latest")
    kubelet.check(cri.PullImageRequest(image=image))
    image.runtime_handler = "virtlet"
    with pytest.raises(AssertionError, match="image.runtime_handler"):
        kubelet.check(cri.PullImageRequest(image=image))


def test_a_pod_of_a_cluster_has_each_field_that_a_kubelet_sets(tmp_path: Path) -> None:
    """But for the control group, which is there when a kubelet has made it."""
    manifest = pod_manifest(POD, tmp_path)
    kubelet.complete(manifest, tmp_path)
    manifest.pod.linux.cgroup_parent = "/kubepods/pod1"
    run = cri.RunPodSandboxRequest(config=manifest.pod, runtime_handler=manifest.handler)
    create = cri.CreateContainerRequest(
        pod_sandbox_id="1", config=manifest.attempt(1, "sha256:1"), sandbox_config=manifest.pod
    )
    pull = cri.PullImageRequest(image=manifest.image(), sandbox_config=manifest.pod)
    assert kubelet.unrecorded("PullImage", pull) == set()
    for method, request in (("RunPodSandbox", run), ("CreateContainer", create)):
        assert kubelet.unrecorded(method, request) == set()
        mine = kubelet.field_paths(request)
        for one in kubelet.recorded(method):
            missing = kubelet.field_paths(one.message) - mine
            assert {path for path in missing if not _of_another_pod(path)} == set()


def _of_another_pod(path: str) -> bool:
    """What this pod has otherwise, and what a kubelet alone can pull or run."""
    others = ("preStopHandler]", "annotations[*]", "seccomp.profile_type")
    return "mounts.image" in path or path.endswith(others)


def test_what_the_recorded_pod_asked_for_gets_the_values_that_the_kubelet_sent(
    tmp_path: Path,
) -> None:
    """But for the score, which goes by the node's memory."""
    manifest = pod_manifest(POD, tmp_path)
    theirs = next(
        one.message.config
        for one in kubelet.recorded("RunPodSandbox")
        if one.message.config.metadata.name == "web"
    )
    ours = manifest.pod
    assert ours.linux.overhead == theirs.linux.overhead
    assert ours.linux.resources == theirs.linux.resources
    assert ours.linux.security_context == theirs.linux.security_context
    assert ours.linux.sysctls == theirs.linux.sysctls
    assert list(ours.port_mappings) == list(theirs.port_mappings)
    container = next(
        one.message.config
        for one in kubelet.recorded("CreateContainer")
        if one.message.sandbox_config.metadata.name == "web"
        and not one.message.config.metadata.attempt
    )
    mine = manifest.attempt(0, container.image.image)
    assert mine.image == container.image
    assert mine.linux.security_context == container.linux.security_context
    for field in ("cpu_period", "cpu_quota", "cpu_shares", "memory_swap_limit_in_bytes"):
        assert getattr(mine.linux.resources, field) == getattr(container.linux.resources, field)
    for name, value in mine.annotations.items():
        if not name.endswith(".hash"):
            assert value == container.annotations[name]
    assert dict(mine.labels).keys() == dict(container.labels).keys()


@pytest.mark.parametrize(
    ("resources", "score"),
    [
        ({}, 1000),
        ({"limits": {"cpu": 1, "memory": "1Gi"}}, -997),
        ({"limits": {"cpu": 1}, "requests": {"memory": 1}}, 999),
        ({"limits": {"cpu": 1}, "requests": {"memory": "900Ti"}}, 3),
    ],
)
def test_what_the_kernel_kills_first_goes_by_the_pods_class(
    tmp_path: Path, resources: dict[str, Any], score: int
) -> None:
    manifest = _manifest(tmp_path, resources=resources)
    assert manifest.container.linux.resources.oom_score_adj == score


def test_a_container_without_limits_has_the_least_shares_and_no_quota(tmp_path: Path) -> None:
    resources = _manifest(tmp_path).container.linux.resources
    assert (resources.cpu_shares, resources.cpu_period, resources.cpu_quota) == (2, 100_000, 0)


def _manifest(tmp_path: Path, **container: Any) -> PodManifest:
    guest = {"name": "guest", "image": "virtlet.cloud/tiny", **container}
    document = {"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [guest]}}
    return read_manifest(_written(tmp_path, document), tmp_path)


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("virtlet.cloud/tiny", "virtlet.cloud/tiny:latest"),
        ("host:5000/tiny", "host:5000/tiny:latest"),
        ("tiny:1", "tiny:1"),
        ("tiny@sha256:" + "0" * 64, "tiny@sha256:" + "0" * 64),
    ],
)
def test_an_image_is_asked_for_with_its_tag_and_created_from_by_its_id(
    runtime: FakeRuntime, tmp_path: Path, image: str, asked: str
) -> None:
    manifest = _manifest(tmp_path, image=image)
    with Client(runtime.path) as client:
        image_id = ensure_image(client, manifest)
    (pulled,) = runtime.called("PullImage")
    assert pulled.image.image == asked
    made = manifest.attempt(0, image_id).image
    assert (made.image, made.user_specified_image) == (image_id, image)
    assert image_id.startswith("sha256:")


@pytest.mark.parametrize(
    ("policy", "there", "pulls"),
    [
        (None, True, 1),
        ("Always", True, 1),
        ("IfNotPresent", True, 0),
        ("IfNotPresent", False, 1),
        ("Never", True, 0),
    ],
)
def test_an_image_is_pulled_by_its_policy(
    runtime: FakeRuntime, tmp_path: Path, policy: str | None, there: bool, pulls: int
) -> None:
    if there:
        runtime.add_image("virtlet.cloud/tiny:latest")
    with Client(runtime.path) as client:
        ensure_image(client, _manifest(tmp_path, imagePullPolicy=policy))
    assert len(runtime.called("PullImage")) == pulls


def test_an_absent_image_that_is_never_to_be_pulled_is_told(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    manifest = _manifest(tmp_path, imagePullPolicy="Never")
    with Client(runtime.path) as client, pytest.raises(CommandFailed, match="imagePullPolicy"):
        ensure_image(client, manifest)
    assert runtime.called("PullImage") == []


def test_the_nodes_resolver_is_the_guests_where_no_cluster_has_one(tmp_path: Path) -> None:
    """As a kubelet without --cluster-dns does."""
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    servers = [line.split()[1] for line in lines if line.startswith("nameserver")]
    assert list(_manifest(tmp_path).pod.dns_config.servers) == servers[:3]
