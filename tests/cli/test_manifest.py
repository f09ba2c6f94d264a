"""A pod manifest becomes the messages a kubelet would send; what cannot be had is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from virtlet.cli.manifest import BadManifest, PodManifest, read_manifest
from virtlet.core.cri import requests
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument


def _read(tmp_path: Path, container: dict[str, Any], **spec: Any) -> PodManifest:
    guest = {"name": "guest", "image": "virtlet.cloud/tiny", **container}
    document = {
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [guest], **spec},
    }
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(document))
    return read_manifest(path, tmp_path)


def test_limits_become_quota_shares_and_bytes(tmp_path: Path) -> None:
    resources = {"limits": {"cpu": "1500m", "memory": "192Mi"}}
    asked = _read(tmp_path, {"resources": resources}).container.linux.resources
    assert (asked.cpu_period, asked.cpu_quota, asked.cpu_shares) == (100_000, 150_000, 1536)
    assert asked.memory_limit_in_bytes == 192 << 20


def test_a_host_path_is_mounted_with_what_the_container_runs(tmp_path: Path) -> None:
    volumes = [{"name": "data", "hostPath": {"path": "/srv/data"}}]
    mounts = [{"name": "data", "mountPath": "/data", "readOnly": True}]
    made = _read(tmp_path, {"volumeMounts": mounts, "command": ["sh"]}, volumes=volumes).container
    (mount,) = made.mounts
    assert (mount.host_path, mount.container_path, mount.readonly) == ("/srv/data", "/data", True)
    assert list(made.command) == ["sh"]


def test_the_same_file_is_the_same_pod(tmp_path: Path) -> None:
    first, second = _read(tmp_path, {}), _read(tmp_path, {})
    assert first.pod.metadata == second.pod.metadata
    assert first.pod.metadata.uid


MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}


@pytest.mark.parametrize(
    ("container", "spec", "problem"),
    [
        (MOUNT, {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}, "volume v takes a kube"),
        (MOUNT, {}, "'v' is missing"),
        ({"env": [{"name": "E", "valueFrom": {}}]}, {}, "env E: valueFrom"),
        ({"volumeDevices": [{"name": "v"}]}, {}, "volumeDevices"),
        ({"resources": {"limits": {"cpu": "many"}}}, {}, "'many' is no quantity"),
        ({}, {"initContainers": [{"name": "first"}]}, "exactly one container"),
        ({"resources": {"limits": {"cpu": "-1"}}}, {}, "limits.cpu '-1' is negative"),
        ({"resources": {"requests": {"memory": -1}}}, {}, "requests.memory '-1' is negative"),
        ({}, {"terminationGracePeriodSeconds": -5}, "terminationGracePeriodSeconds -5 must be"),
        ({}, {"terminationGracePeriodSeconds": 1.5}, "terminationGracePeriodSeconds 1.5 must be"),
        ({"env": [{"name": "E", "value": True}]}, {}, "env E is not a string but bool"),
        (
            {},
            {"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": 1024}]}},
            "sysctl net.core.somaxconn is not a string but int",
        ),
        ({"securityContext": {"privileged": "yes"}}, {}, "no usable pod manifest"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_files_name(
    tmp_path: Path, container: dict[str, Any], spec: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadManifest, match=rf"pod\.yaml: .*{problem}"):
        _read(tmp_path, container, **spec)


@pytest.mark.parametrize("field", ["annotations", "labels"])
@pytest.mark.parametrize(("text", "kind"), [("true", "bool"), ("7", "int"), ("{pin: x}", "dict")])
def test_annotations_and_labels_that_are_no_strings_are_refused_unseen(
    tmp_path: Path, field: str, text: str, kind: str
) -> None:
    """The API server refuses them too; VirtletForceDHCPNetworkConfig's true is one, say."""
    path = tmp_path / "pod.yaml"
    path.write_text(
        f"kind: Pod\nmetadata: {{name: web, {field}: {{key: {text}}}}}\n"
        "spec: {containers: [{name: guest, image: virtlet.cloud/tiny}]}\n"
    )
    with pytest.raises(BadManifest, match=f"{field}: key is not a string but {kind}") as caught:
        read_manifest(path, tmp_path)
    assert "pin" not in str(caught.value)


@pytest.mark.parametrize(
    ("container", "spec", "refusal"),
    [
        ({}, {"hostNetwork": True}, "hostNetwork"),
        ({}, {"hostPID": True}, "hostPID"),
        ({}, {"hostIPC": True}, "hostIPC"),
        ({"securityContext": {"privileged": True}}, {}, "privileged"),
    ],
)
def test_what_a_machine_cannot_be_given_is_asked_for_and_refused_by_the_manager(
    tmp_path: Path, container: dict[str, Any], spec: dict[str, Any], refusal: str
) -> None:
    manifest = _read(tmp_path, container, **spec)
    with pytest.raises(InvalidArgument, match=refusal):
        requests.pod_config(manifest.pod)
    with pytest.raises(InvalidArgument, match=refusal):
        requests.vm_config(manifest.container)


def test_sysctls_and_a_shared_process_namespace_are_asked_for(tmp_path: Path) -> None:
    sysctls = [{"name": "net.core.somaxconn", "value": "1024"}]
    pod = _read(tmp_path, {}, shareProcessNamespace=True, securityContext={"sysctls": sysctls}).pod
    assert requests.pod_config(pod).sysctls == {"net.core.somaxconn": "1024"}
    assert pod.linux.security_context.namespace_options.pid == cri.NamespaceMode.POD


def test_nothing_of_the_node_is_asked_for_unless_the_manifest_does(tmp_path: Path) -> None:
    manifest = _read(tmp_path, {})
    assert requests.pod_config(manifest.pod).sysctls == {}
    context = manifest.container.linux.security_context
    assert context.namespace_options == manifest.pod.linux.security_context.namespace_options
    assert context.namespace_options.pid == cri.NamespaceMode.CONTAINER
    assert not context.privileged


POD = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: guest, image: a}]}\n"


def test_of_several_documents_the_kinds_are_told_and_no_line_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(f"kind: ConfigMap\n---\n{POD}")
    with pytest.raises(BadManifest, match=r"holds 2 documents \(ConfigMap, Pod\)") as caught:
        read_manifest(path, tmp_path)
    assert "no valid YAML" not in str(caught.value)


def test_empty_documents_beside_the_pod_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(f"---\n# nothing\n---\n{POD}---\n")
    assert read_manifest(path, tmp_path).pod.metadata.name == "web"


@pytest.mark.parametrize("text", ["[", "kind: Service", "- 1", "kind: Pod", "[" * 5000])
def test_what_is_no_pod_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(BadManifest, match="pod.yaml"):
        read_manifest(path, tmp_path)
