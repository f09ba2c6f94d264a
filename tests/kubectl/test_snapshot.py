"""`kubectl virtlet snapshot`, by the real kubectl, to an API server that answers as a kubelet."""

import pytest

from tests.kubectl.conftest import PODS, ApiServer, Run, pod

CHECKPOINT = "/api/v1/nodes/node-1/proxy/checkpoint/shop/db/vm"
ARCHIVE = "/var/lib/kubelet/checkpoints/checkpoint-db_shop-vm-2026-01-01T00:00:00Z.tar"


@pytest.fixture
def cluster(api: ApiServer) -> ApiServer:
    """With a VM that runs."""
    api.documents[f"{PODS}/db"] = pod("db")
    return api


def test_the_kubelet_is_asked_through_the_api_server(cluster: ApiServer, run: Run) -> None:
    cluster.documents[CHECKPOINT] = {"items": [ARCHIVE]}
    said = run("snapshot", "--timeout", "30", "db")
    assert (said.exit_code, said.output) == (0, f"node-1:{ARCHIVE}\n")
    assert cluster.posted == [(f"{CHECKPOINT}?timeout=30", b"")]


@pytest.mark.parametrize(
    ("code", "reason", "message", "why"),
    [
        (403, "Forbidden", "nodes is forbidden", "ask for the right to create nodes/proxy"),
        (404, "NotFound", "no such path", "ContainerCheckpoint"),
        (500, "InternalError", "checkpointing of shop/db/vm failed: it is paused", "it is paused"),
    ],
)
def test_why_there_is_none_is_told(
    cluster: ApiServer, run: Run, code: int, reason: str, message: str, why: str
) -> None:
    cluster.refuse(CHECKPOINT, code, reason, message)
    said = run("snapshot", "db")
    assert said.exit_code == 1
    assert "no snapshot of pod shop/db: " in str(said.exception or said.output)
    assert why in str(said.exception or said.output)


def test_only_a_vm_that_runs_has_one(api: ApiServer, run: Run) -> None:
    waiting = {"name": "vm", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    api.documents[f"{PODS}/db"] = pod("db", phase="Pending", containerStatuses=[waiting])
    api.documents[f"{PODS}/web"] = pod("web", "sandboxed")
    for name, why in (("db", "does not run: phase Pending"), ("web", "is no VM")):
        said = run("snapshot", name)
        assert said.exit_code == 1
        assert why in str(said.exception or said.output)
    assert api.posted == []


def test_an_answer_without_an_archive_is_told(cluster: ApiServer, run: Run) -> None:
    cluster.documents[CHECKPOINT] = {"items": []}
    said = run("snapshot", "db")
    assert said.exit_code == 1
    assert "names no archive" in str(said.exception or said.output)
