"""`kubectl virtlet diag dump`: what is in it, and that no secret is."""

import io
import json
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.kubectl.conftest import PODS, ApiServer, Run, pod

SYSTEM = "/api/v1/namespaces/kube-system/pods"
SECRET = "hunter2"
CANNED: dict[str, Any] = {
    "/version": {"gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod"}
            | {"verbs": ["get", "list"]}
        ],
    },
}


def _secretive() -> dict[str, Any]:
    """A pod with a secret wherever one may be."""
    made = {"apiVersion": "v1", "kind": "Pod", **pod("db", restarted=True)}
    made["metadata"] |= {
        "labels": {"app": "db"},
        "annotations": {
            "VirtletCloudInitUserData": f"password: {SECRET}",
            "VirtletVCPUCount": "2",
            "kubectl.kubernetes.io/last-applied-configuration": SECRET,
        },
        "managedFields": [{"manager": SECRET}],
    }
    made["spec"] |= {
        "volumes": [
            {
                "name": "ceph",
                "flexVolume": {"driver": "ceph", "options": {"s": SECRET}},
            },
            {"name": "csi", "csi": {"driver": "virtlet.cloud", "volumeAttributes": {"s": SECRET}}},
            {"name": "key", "secret": {"secretName": "keys"}},
        ],
        "newField": SECRET,
    }
    (container,) = made["spec"]["containers"]
    container |= {
        "env": [{"name": "PASSWORD", "value": SECRET}],
        "command": [SECRET],
        "args": [SECRET],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"exec": {"command": [SECRET]}}},
        "livenessProbe": {
            "httpGet": {"port": 80, "httpHeaders": [{"name": "Authorization", "value": SECRET}]},
            "periodSeconds": 5,
        },
    }
    (status,) = made["status"]["containerStatuses"]
    status["lastState"] = {"terminated": {"reason": "Error", "exitCode": 1, "message": SECRET}}
    return made


def _manager() -> dict[str, Any]:
    container = {"name": "virtlet", "image": "node", "args": ["--config", "/etc/virtlet.yaml"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "virtlet-x", "namespace": "kube-system", "uid": "u"},
        "spec": {"nodeName": "node-1", "containers": [container]},
        "status": {"phase": "Running"},
    }


def _of_node() -> bytes:
    """What a node's own dump says, one that was made to harm."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in (("node/info.json", b"{}"), ("node/../../../etc/x", b"token=hunter2")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
        link = tarfile.TarInfo("node/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
    return packed.getvalue()


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """One VM, its node and its manager; exec is answered by a stand-in, all else by kubectl."""
    vm, manager = _secretive(), _manager()
    event = {"reason": "VMEnded", "message": f"token={SECRET}", "count": 2, "metadata": {}}
    notice = "[virtlet: the guest has not mounted /data]"
    api.documents |= CANNED | {
        PODS: {"items": [vm, pod("other", None)]},
        f"{PODS}/db": vm,
        f"{PODS}/db/log": f"login:\n{SECRET}\n{notice}\n",
        "/api/v1/namespaces/shop/events": {"items": [event]},
        "/api/v1/nodes": {
            "items": [{"metadata": {"name": "node-1", "annotations": {"a": SECRET}}, "spec": {}}]
        },
        SYSTEM: {"items": [manager]},
        f"{SYSTEM}/virtlet-x": manager,
        f"{SYSTEM}/virtlet-x/log": f'{{"message": "ready", "header": "Bearer {SECRET}"}}\n',
    }
    (tmp_path / "node.tar.gz").write_bytes(_of_node())
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *\' exec \'*) echo "$*" >{tmp_path}/asked; '
        f'cat {tmp_path}/node.tar.gz;; *) exec {shutil.which("kubectl")} "$@";; esac\n'
    )
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return api


def _texts(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        return {
            entry.name.removeprefix("virtlet-diag-cluster/"): made.read().decode()
            for entry in tar
            if (made := tar.extractfile(entry))
        }


def test_all_that_a_report_needs_is_there_and_no_secret(
    cluster: ApiServer, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "report.tar.gz"
    said = run("diag dump", str(file))
    assert said.exit_code == 0, said.output
    texts = _texts(file)
    assert set(texts) == {
        *("versions.json", "cluster.json", "nodes.json"),
        *("vms/shop/db/pod.json", "vms/shop/db/events.json"),
        *("vms/shop/db/vm.notices.log", "vms/shop/db/vm.previous.notices.log"),
        *("nodes/node-1/manager.json", "nodes/node-1/manager.log"),
        *("nodes/node-1/info.json", "nodes/node-1/_.._.._etc_x"),
    }
    assert not [name for name, text in texts.items() if SECRET in text]
    shown = json.loads(texts["vms/shop/db/pod.json"])
    assert shown["metadata"]["annotations"]["VirtletVCPUCount"] == "2"
    assert shown["spec"]["containers"][0]["env"] == ["PASSWORD"]
    assert shown["spec"]["containers"][0]["livenessProbe"] == {"by": "httpGet", "periodSeconds": 5}
    assert shown["spec"]["volumes"][2] == {"name": "key", "kind": "secret", "secretName": "keys"}
    assert shown["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    assert texts["vms/shop/db/vm.notices.log"] == "[virtlet: the guest has not mounted /data]"
    assert "ready" in texts["nodes/node-1/manager.log"]
    asked = (tmp_path / "asked").read_text()
    assert asked.endswith("-- virtlet diag dump --config /etc/virtlet.yaml -\n")


def test_consoles_are_in_it_where_they_are_asked_for(
    cluster: ApiServer, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "report.tar.gz"
    run("diag dump", "--consoles", str(file))
    assert SECRET in _texts(file)["vms/shop/db/vm.console.log"]


def test_what_a_user_may_not_read_is_told_and_the_rest_is_there(
    cluster: ApiServer, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "report.tar.gz"
    cluster.refuse("/api/v1/nodes", 403, "Forbidden", 'User "eve" cannot list nodes')
    cluster.refuse(SYSTEM, 403, "Forbidden", 'User "eve" cannot list pods')
    said = run("diag dump", str(file))
    texts = _texts(file)
    assert "vms/shop/db/pod.json" in texts
    assert 'nodes.json: Error from server (Forbidden): User "eve"' in texts["problems.txt"]
    assert 'not in it: managers.json: Error from server (Forbidden): User "eve"' in said.stderr
