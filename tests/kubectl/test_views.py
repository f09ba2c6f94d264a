"""The commands of `kubectl virtlet` that look, by the real kubectl."""

import json
from pathlib import Path

import pytest

import virtlet
from tests.kubectl.conftest import CLASSES, PODS, ApiServer, Run, pod
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import NO_KUBECTL

FLAVORS = "/apis/virtlet.k8s/v1/virtletflavors"
METRICS = "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods"
MANAGERS = "/api/v1/namespaces/kube-system/pods"


def _words(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_vms_are_listed_and_containers_are_not(api: ApiServer, run: Run) -> None:
    """Of a class by its name, by its handler, and of a node that has Virtlet alone."""
    alone = pod("alone", None)
    alone["status"]["containerStatuses"][0]["containerID"] = "virtlet://12"
    others = [pod("web", "sandboxed"), pod("cache", None)]
    api.documents[PODS] = {"items": [pod("db"), pod("big", "fast"), alone, *others]}
    said = run("vms")
    assert said.exit_code == 0, said.output
    titles, *rows = _words(said.output)
    assert titles[:5] == ["NAMESPACE", "NAME", "PHASE", "READY", "RESTARTS"]
    assert [row[1] for row in rows] == ["db", "big", "alone"]
    assert rows[0] == ["shop", "db", "Running", "yes", "1", "10.0.0.7", "node-1", "virtlet"]
    listed = json.loads(run("vms", "-o", "json").output)
    assert [one["metadata"]["name"] for one in listed["items"]] == ["db", "big", "alone"]


def test_without_the_right_to_read_classes_their_names_tell(api: ApiServer, run: Run) -> None:
    api.refuse(CLASSES, 403, "Forbidden", "runtimeclasses is forbidden")
    api.documents[PODS] = {"items": [pod("db"), pod("big", "fast")]}
    assert [row[1] for row in _words(run("vms").output)[1:]] == ["db"]


def test_a_vm_that_waits_shows_why(api: ApiServer, run: Run) -> None:
    waiting = {"name": "vm", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    api.documents[PODS] = {"items": [pod("db", phase="Pending", containerStatuses=[waiting])]}
    assert _words(run("vms").output)[1][2:4] == ["ImagePullBackOff", "no"]


def test_a_user_without_rights_is_told_so(api: ApiServer, run: Run) -> None:
    api.refuse(PODS, 403, "Forbidden", 'pods is forbidden: User "eve" cannot list them')
    said = run("vms")
    assert isinstance(said.exception, CommandFailed)
    assert 'User "eve" cannot list them' in str(said.exception)


def test_consumption_is_that_of_the_metrics_server(api: ApiServer, run: Run) -> None:
    usage = {"cpu": "250m", "memory": "300Mi"}
    names = [{"name": name, "namespace": "shop"} for name in ("db", "cache")]
    found = [{"metadata": name, "containers": [{"name": "vm", "usage": usage}]} for name in names]
    api.documents |= {
        PODS: {"items": [pod("db"), pod("cache", None)]},
        METRICS: {"items": found},
    }
    [_, *rows] = _words(run("top").output)
    assert rows == [["shop", "db", "250m", "2", "300Mi", "node-1"]]


def test_a_cluster_without_metrics_is_told(api: ApiServer, run: Run) -> None:
    api.documents[PODS] = {"items": []}
    assert "has no metrics server" in str(run("top").exception)


def test_flavors_are_listed(api: ApiServer, run: Run) -> None:
    machine = {"vcpus": 2, "max_vcpus": 4, "memory": "8Gi", "disk_bus": "virtio"}
    spec = {"flavor": machine, "handlers": ["virtlet-large"], "description": "For databases"}
    api.documents[FLAVORS] = {"items": [{"metadata": {"name": "database"}, "spec": spec}]}
    row = _words(run("flavors").output)[1]
    assert row[:5] == ["database", "2", "to", "4", "8Gi"]
    assert row[5:] == ["virtio", "virtlet-large", "all", "For", "databases"]


def test_a_cluster_without_flavors_is_told_what_to_apply(api: ApiServer, run: Run) -> None:
    assert "apply deploy/cluster/virtletflavor.yaml" in str(run("flavors").exception)


def test_versions_are_those_of_the_client_the_cluster_and_its_nodes(
    api: ApiServer, run: Run
) -> None:
    told = {"kubeletVersion": "v1.34.0", "containerRuntimeVersion": "containerd://2.1.0"}
    nodes = [
        {"metadata": {"name": name}, "status": {"nodeInfo": told}} for name in ("node-1", "node-2")
    ]
    manager = pod("virtlet-x1", None)
    manager["spec"]["containers"][0]["image"] = "registry.example/virtlet-node:2.1.0"
    api.documents |= {
        "/version": {"gitVersion": "v1.34.2"},
        "/api/v1/nodes": {"items": nodes},
        MANAGERS: {"items": [manager]},
    }
    client, cluster, _, *rows = _words(run("version").output)
    assert client == ["client", virtlet.__version__]
    assert cluster == ["cluster", "v1.34.2"]
    assert rows == [
        ["node-1", "virtlet-node:2.1.0", "v1.34.0", "containerd://2.1.0"],
        ["node-2", "not", "told", "v1.34.0", "containerd://2.1.0"],
    ]
    assert "/api/v1/nodes?labelSelector=virtlet.cloud%2Fnode%3Dtrue" in api.asked


def test_the_client_s_version_needs_no_cluster(api: ApiServer, run: Run) -> None:
    assert virtlet.__version__ in run("version", "--client").output
    assert api.asked == []


def test_who_may_not_list_nodes_sees_the_others(api: ApiServer, run: Run) -> None:
    api.documents["/version"] = {"gitVersion": "v1.34.2"}
    api.refuse("/api/v1/nodes", 403, "Forbidden", "nodes is forbidden")
    said = run("version")
    assert said.exit_code == 0
    assert "you may not list nodes" in said.output


def test_without_kubectl_it_is_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(run("vms").exception) == NO_KUBECTL
