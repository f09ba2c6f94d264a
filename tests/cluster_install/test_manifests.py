"""The manifests of deploy/cluster: kubectl takes them, they fit the API and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import confined
from tests.cluster_install.manifests import CLUSTER, ROOT, Document, documents, find, problems

_CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "RuntimeClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def _resources(version: str) -> list[Document]:
    """What a server tells of an API version: the kinds that the manifests have."""
    kinds = {one["kind"] for one in documents() if one["apiVersion"] == version}
    return [
        {
            "name": re.sub(r"y$", "ie", re.sub(r"s$", "se", kind.lower())) + "s",
            "singularName": kind.lower(),
            "namespaced": kind not in _CLUSTER_WIDE,
            "kind": kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for kind in sorted(kinds)
    ]


class _Empty(BaseHTTPRequestHandler):
    """An API server with no objects; it knows the kinds of the manifests."""

    def do_GET(self) -> None:
        versions = sorted({one["apiVersion"] for one in documents()} - {"v1"})
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api"]:
                self._send(200, {"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                groups = [self._group(version) for version in versions]
                self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            case ["api", "v1"] | ["apis", _, _] as words:
                version = "/".join(words[1:])
                told = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
                self._send(200, told | {"resources": _resources(version)})
            case _:
                reason = {"status": "Failure", "reason": "NotFound", "code": 404}
                self._send(404, {"kind": "Status", "apiVersion": "v1", **reason})

    @staticmethod
    def _group(version: str) -> Document:
        group, _, short = version.partition("/")
        one = {"groupVersion": version, "version": short}
        return {"name": group, "versions": [one], "preferredVersion": one}

    def _send(self, code: int, answer: Document) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of an API server without objects."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_kubectl_would_create_every_object(server: str, tmp_path: Path) -> None:
    # Field validation is another test's: it takes the schemas of a real server.
    done = subprocess.run(
        [
            *("kubectl", "--server", server, "--cache-dir", str(tmp_path)),
            *("apply", "-k", str(CLUSTER), "--dry-run=client", "--validate=false"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    created = [line.split()[0] for line in done.stdout.splitlines() if "created (dry run)" in line]
    assert len(created) == len(documents())


def test_every_manifest_is_as_the_types_of_the_api_have_it() -> None:
    """Those of deploy/ one by one: tests/test_deploy.py."""
    examples = {path: path.read_text() for path in sorted((ROOT / "examples").rglob("*.yaml"))}
    wrong = [f"{one['kind']}: {problem}" for one in documents() for problem in problems(one)]
    for path, text in examples.items():
        for one in yaml.safe_load_all(text):
            if isinstance(one, dict) and "." not in one.get("apiVersion", ".").partition("/")[0]:
                wrong += [f"{path.name}: {problem}" for problem in problems(one)]
    assert wrong == []


def test_the_check_sees_what_is_wrong() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {"containers": [{"name": 1, "imagee": "x"}], "hostPID": "yes"},
    }
    assert list(problems(pod)) == [
        "Pod.spec.containers[0].name is no str: 1",
        "Pod.spec.containers[0] has no field imagee",
        "Pod.spec.hostPID is no bool: 'yes'",
    ]
    assert list(problems({"apiVersion": "apps/v1", "kind": "DemonSet"})) == [
        "apps/v1 has no DemonSet"
    ]
    (missing,) = problems({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {"template": {}}})
    assert missing.startswith("DaemonSet.spec: ")
    assert "selector" in missing


def test_every_object_of_the_directory_and_every_definition_is_applied() -> None:
    left_out = {("Secret", "virtlet-token"), ("RoleBinding", "virtlet-pod-objects")}
    applied = {(one["kind"], one["metadata"]["name"]) for one in documents()}
    for path in (ROOT / "deploy").rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if not isinstance(one, dict) or one.get("kind", "Kustomization") == "Kustomization":
                continue
            name = (one["kind"], one["metadata"]["name"])
            if path.parent == CLUSTER or one["kind"] == "CustomResourceDefinition":
                assert name in applied | left_out, f"kustomization.yaml leaves out {path.name}"


def _pod() -> Any:
    return find("DaemonSet", "virtlet")["spec"]["template"]["spec"]


def test_what_the_pod_names_is_there() -> None:
    pod, (container,) = _pod(), _pod()["containers"]
    names = {(one["kind"], one["metadata"]["name"]) for one in documents()}
    assert ("ServiceAccount", pod["serviceAccountName"]) in names
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}
    maps = [v["configMap"]["name"] for v in volumes.values() if "configMap" in v]
    assert len(maps) == 2
    assert {("ConfigMap", name) for name in maps} <= names


def test_the_account_has_no_lasting_token_and_reads_no_namespaces_secrets() -> None:
    kinds = [one["kind"] for one in documents()]
    assert "Secret" not in kinds
    bound = [one["roleRef"]["name"] for one in documents() if "roleRef" in one]
    assert "virtlet-pod-objects" not in bound
    assert "virtlet-image-mappings" in bound


def test_the_account_posts_events_and_reads_none() -> None:
    roles = [one for one in documents() if one["kind"] in ("Role", "ClusterRole")]
    rules = [rule for one in roles for rule in one["rules"] if "events" in rule["resources"]]
    assert rules == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]
    assert not [rule for one in roles for rule in one["rules"] if "*" in rule["resources"]]


def test_the_image_is_the_one_of_this_tree() -> None:
    """A release changes `newTag` in deploy/cluster/kustomization.yaml with its version."""
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    (version,) = (line[len("version = ") :] for line in lines if line.startswith("version = "))
    (container,) = _pod()["containers"]
    assert container["image"] == f"localhost/virtlet-node:{version.replace('+', '-')}"


def test_the_console_has_no_account_and_is_reached_by_its_proxy_alone() -> None:
    command = ["kubectl", "kustomize", str(ROOT / "deploy" / "console")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    objects = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert objects.keys() == {"Deployment", "Service"}
    service, deployment = objects["Service"], objects["Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    (console, proxy) = spec["containers"]
    assert console["image"] == _pod()["containers"][0]["image"]
    assert "ports" not in console
    (port,) = (arg.partition("=")[2] for arg in console["args"] if arg.startswith("--port="))
    assert f"--upstream=http://127.0.0.1:{port}" in proxy["args"]
    (behind,) = (arg.partition("=")[2] for arg in console["args"] if arg.startswith("--behind="))
    assert f"--redirect-url={behind}/oauth2/callback" in proxy["args"]
    assert service["spec"]["ports"][0]["targetPort"] == proxy["ports"][0]["name"]


def test_the_classes_are_those_of_the_handlers_and_of_the_nodes() -> None:
    classes = [one for one in documents() if one["kind"] == "RuntimeClass"]
    settings = yaml.safe_load(find("ConfigMap", "virtlet")["data"]["virtlet.yaml"])
    assert {one["handler"] for one in classes} == settings["handlers"].keys()
    assert all(one["scheduling"]["nodeSelector"] == _pod()["nodeSelector"] for one in classes)


def test_the_manager_has_the_capabilities_of_its_unit() -> None:
    script = (ROOT / "images" / "node" / "rootfs" / "usr" / "bin" / "virtlet-node").read_text()
    listed = re.search(r"for capability in (.*?); do", script, re.DOTALL)
    assert listed is not None
    unit = confined.settings(ROOT / "deploy" / "virtlet.service")["CapabilityBoundingSet"]
    wanted = {name.removeprefix("CAP_").lower() for line in unit for name in line.split()}
    assert set(listed[1].replace("\\", " ").split()) == wanted


def test_the_overlay_of_the_guide_changes_what_it_says(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide" / "cluster.md").read_text()
    (block,) = re.findall(r"^    ```yaml\n(.*?)^    ```$", guide, re.MULTILINE | re.DOTALL)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (tmp_path / "virtlet").mkdir()
    shutil.copytree(CLUSTER, tmp_path / "virtlet" / "deploy" / "cluster")
    (overlay / "kustomization.yaml").write_text(textwrap.dedent(block))
    (overlay / "images.yaml").write_text("translations: []\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], check=True, capture_output=True, text=True
    )
    changed = list(yaml.safe_load_all(done.stdout))
    assert [problem for one in changed for problem in problems(one)] == []
    (pod,) = (o["spec"]["template"]["spec"] for o in changed if o["kind"] == "DaemonSet")
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/virtlet-node:2.0.0"
    assert pod["volumes"][-1]["name"] == container["volumeMounts"][-1]["name"] == "data-disks"
    maps = {o["metadata"]["name"]: o["data"] for o in changed if o["kind"] == "ConfigMap"}
    (images,) = (v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "images")
    assert maps[images] == {"images.yaml": "translations: []\n"}


def test_the_images_python_packages_are_those_of_an_installation_and_the_clusters_client() -> None:
    def pins(path: Path) -> set[str]:
        return set(re.findall(r"^[a-z0-9_.-]+==\S+", path.read_text(), re.MULTILINE))

    image = pins(ROOT / "images" / "node" / "requirements.txt")
    assert pins(ROOT / "requirements.txt") < image
    assert any(pin.startswith("kubernetes==") for pin in image)
