"""A node as it is in production: libvirt is a daemon of its own, which can go and come back."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.e2e.subscriber import DELETED, STOPPED, Subscriber
from tests.plugins.libvirt_qemu.daemon import Daemon
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A libvirtd that these tests may kill."""
    root = tmp_path_factory.mktemp("libvirtd")
    for directory in (root, *root.parents[:2]):
        directory.chmod(0o711)  # the emulator's user has to get in
    daemon = Daemon(root)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def daemon_node(libvirtd: Daemon) -> Iterator[Playground]:
    """A node whose manager is a client of that daemon."""
    settings = {"libvirtURI": libvirtd.uri}
    with Playground({"tiny": TINY}, subnet="10.128.0.0/16", settings=settings) as playground:
        yield playground


def _ready(node: Playground) -> cri.RuntimeCondition:
    status = node.client().call("Status", cri.StatusRequest()).status
    condition: cri.RuntimeCondition
    (condition,) = (c for c in status.conditions if c.type == "RuntimeReady")
    return condition


def test_a_pod_goes_its_whole_way(daemon_node: Playground) -> None:
    pod = Pod(daemon_node, daemon_node.client(), make_manifest(daemon_node, "daily")).up()
    assert pod.wait_for_answer()
    pod.wait_for_console("login:")
    pod.client.stop(pod.vm, 30)
    assert (pod.status.reason, pod.status.exit_code) == ("Completed", 0)
    again = pod.up(attempt=1)
    again.client.stop(again.vm, 0)
    assert again.status.exit_code == 137
    again.down()
    assert daemon_node.settled_leftovers() == []


def test_a_vm_that_somebody_pauses_runs_and_says_that_it_is_paused(
    daemon_node: Playground, libvirtd: Daemon
) -> None:
    pod = Pod(daemon_node, daemon_node.client(), make_manifest(daemon_node, "paused")).up()
    domain = f"virtlet-{pod.vm[:12]}-paused"
    _virsh(libvirtd, "suspend", domain)
    until(lambda: pod.status.reason == "Paused", "the pause in the status", 10)
    assert pod.status.state == cri.CONTAINER_RUNNING
    _virsh(libvirtd, "resume", domain)
    until(lambda: pod.status.reason == "", "the end of the pause in the status", 10)
    assert pod.status.state == cri.CONTAINER_RUNNING
    pod.down()


def test_a_daemon_that_dies_is_reported_waited_for_and_caught_up_with(
    daemon_node: Playground, libvirtd: Daemon
) -> None:
    """Within seconds each; VMs run on, and one that ends meanwhile is EXITED."""
    client = daemon_node.client()
    stays, goes = (
        Pod(daemon_node, client, make_manifest(daemon_node, name)).up()
        for name in ("stays", "goes")
    )
    for pod in (stays, goes):
        pod.wait_for_answer()
    emulators = {pod.vm: _emulator(libvirtd, pod) for pod in (stays, goes)}
    subscriber = Subscriber(daemon_node)

    libvirtd.kill()
    until(lambda: not _ready(daemon_node).status, "the loss in Status")
    condition = _ready(daemon_node)
    assert condition.reason
    assert "plugin libvirt_qemu" in condition.message
    assert _health(daemon_node) == HealthCheckResponse.NOT_SERVING
    with pytest.raises(CallFailed, match="plugin libvirt_qemu is away") as caught:
        Pod(daemon_node, client, make_manifest(daemon_node, "refused")).run()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    started = time.monotonic()
    assert {c.id for c in client.containers()} >= {stays.vm, goes.vm}
    assert stays.status.state == cri.CONTAINER_RUNNING
    assert time.monotonic() - started < 10
    assert stays.get()
    Path(f"/proc/{emulators[stays.vm]}").stat()
    _end(emulators[goes.vm])

    libvirtd.start()
    until(lambda: _ready(daemon_node).status, "the daemon's return in Status")
    until(lambda: goes.status.state == cri.CONTAINER_EXITED, "the end of one VM", 10)
    assert _health(daemon_node) == HealthCheckResponse.SERVING
    assert goes.status.exit_code != 0
    assert goes.status.reason == "Error"
    until(lambda: bool(subscriber.of(goes.vm)), "its end among the events")
    assert stays.status.state == cri.CONTAINER_RUNNING
    assert stays.get()
    for pod in (stays, goes):
        pod.down()
    until(lambda: (goes.vm, DELETED) in subscriber.of(goes.vm), "its removal")
    subscriber.close()
    assert subscriber.of(goes.vm) == [(goes.vm, STOPPED), (goes.vm, DELETED)]
    (status,) = subscriber.events_of(goes.vm)[0].containers_statuses
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "Error")
    assert daemon_node.settled_leftovers() == []


def _health(node: Playground) -> int:
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        status: int = HealthStub(channel).Check(HealthCheckRequest(), timeout=5).status
    return status


def _virsh(libvirtd: Daemon, *arguments: str) -> None:
    argv = ["virsh", "-q", "-c", libvirtd.uri, *arguments]
    subprocess.run(argv, check=True, capture_output=True, timeout=20)


def _emulator(libvirtd: Daemon, pod: Pod) -> int:
    (file,) = (libvirtd.root / "run/qemu").glob(f"*{pod.vm[:12]}*.pid")
    return int(file.read_text())


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}/exe").exists(), f"the end of process {pid}")
