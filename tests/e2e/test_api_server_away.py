"""The cluster's API server goes away; the VMs do not notice."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.fakes.api_server import CONFIGS, FLAVORS, ApiServer, serving
from tests.polling import until
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns


@pytest.fixture
def cluster_node(tmp_path: Path) -> Iterator[Playground]:
    """A node of a cluster, whose API server is not there yet."""
    settings = {"kubeconfig": str(tmp_path / "kubeconfig")}
    images = {"tiny": TINY}
    with Playground(
        images, subnet="10.146.0.0/16", settings=settings, wrapper=AS_THE_UNIT
    ) as playground:
        yield playground


def test_vms_run_on_and_new_ones_start_while_the_api_server_is_away_also_after_a_restart(
    cluster_node: Playground, tmp_path: Path
) -> None:
    node, api = cluster_node, ApiServer()
    api.put(FLAVORS, "", "virtio", spec={"flavor": {"disk_bus": "virtio"}})
    api.put(CONFIGS, "kube-system", "all", spec={"config": {"guestAgentTimeout": "200s"}})

    def up(name: str) -> Pod:
        manifest = make_manifest(node, name)
        manifest.pod.annotations["VirtletFlavor"] = "virtio"
        pod = Pod(node, node.client(), manifest).up()
        assert b"virtio-blk-pci" in Path(f"/proc/{pod.emulator}/cmdline").read_bytes()
        return pod

    with ExitStack() as server:
        netns.inside(node.netns, lambda: server.enter_context(serving(tmp_path, api)))
        node.stop()
        node.start()
        until(lambda: _watched(api, FLAVORS) and _watched(api, CONFIGS), "watches of the objects")
        before = up("before")
    emulator = before.emulator
    assert before.wait_for_answer()

    meanwhile = up("meanwhile")
    node.stop()
    node.start()
    later = up("later")
    for pod in (before, meanwhile, later):
        assert pod.status.state == cri.CONTAINER_RUNNING
    assert before.emulator == emulator
    assert before.get()
    for pod in (before, meanwhile, later):
        pod.client.stop(pod.vm, 0)
        pod.down()
    assert node.settled_leftovers() == []


def _watched(api: ApiServer, kind: str) -> bool:
    return any(f"/{kind} (watch)" in request for request in api.requests)
