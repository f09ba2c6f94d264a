"""The DaemonSet's pod in containerd runs a VM pod, which outlives it and its image."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from attrs import define, field

from tests import confined
from tests.cluster_install.daemon_pod import (
    ClusterNode,
    DaemonPod,
    build_image,
    build_older_image,
)
from tests.criproxy.real.containerd import Containerd
from tests.fakes import kubelet
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.testing.guest import BOOT_TIMEOUT, payload

ROOT = Path(__file__).parents[2]
# With the image, if it has to be built.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@define
class VmPod:
    """A VM pod, asked for by the socket that the node has."""

    node: ClusterNode
    manifest: PodManifest
    id: str = field(default="")
    vm: str = field(default="")

    def client(self) -> Client:
        """A client of the manager that is there now."""
        return Client(self.node.seen("/run/virtlet.sock"))

    def up(self) -> None:
        """Run it."""
        with self.client() as client:
            pod = self.manifest.pod
            self.id = client.run_pod(pod, "virtlet")
            image = client.pull(self.manifest.image(), pod)
            self.vm = client.create(self.id, self.manifest.attempt(0, image), pod)
            client.start(self.vm)

    def sh(self, script: str) -> str:
        """Run a script in the guest; returns what it prints."""
        request = cri.ExecSyncRequest(
            container_id=self.vm, cmd=["sh", "-c", script], timeout=round(BOOT_TIMEOUT)
        )
        with self.client() as client:
            reply = client.call("ExecSync", request, timeout=BOOT_TIMEOUT + 30)
        assert reply.exit_code == 0, reply.stderr
        return str(reply.stdout.decode())

    def status(self) -> cri.ContainerStatus:
        """The VM's status."""
        with self.client() as client:
            return client.status(self.vm)

    def address(self) -> str:
        """The pod's address."""
        with self.client() as client:
            return client.pod_status(self.id).network.ip

    def console(self) -> str:
        """What the guest printed, out of the pod's log."""
        log = Path(self.manifest.pod.log_directory, "guest", "0.log")
        return payload(self.node.seen(str(log))).decode(errors="replace")

    def processes(self) -> dict[int, str]:
        """The VM's emulator and virtiofsd: when each was started, by its process id."""
        name = str(UUID(self.vm))
        found = {}
        for pid, argv in self.node.processes().items():
            if any(name in word for word in argv) or "virtiofsd" in " ".join(argv[:1]):
                stat = Path(f"/proc/{pid}/stat").read_text()
                found[pid] = stat.rpartition(")")[2].split()[19]
        return found

    def down(self) -> None:
        """Remove it."""
        with self.client() as client:
            client.remove_pod(self.id)


def _network(node: ClusterNode) -> None:
    """The cluster's network on the node, as a CNI DaemonSet installs it."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]]},
    }
    text = json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [bridge]})
    node.seen("/etc/cni/net.d/10-net.conflist").write_text(text)


def _vm_pod(node: ClusterNode, name: str = "tiny") -> VmPod:
    document = kubelet.document(ROOT / "examples" / "pods" / "tiny.yaml", name)
    manifest = pod_manifest(document, Path("/var/log/pods"))
    kubelet.complete(manifest, node.path("/var/lib/kubelet/pods"))
    for mount in manifest.container.mounts:
        inside = Path(mount.host_path).relative_to(node.path("/var/lib"))
        mount.host_path = str(Path("/var/lib") / inside)
    # A kubelet makes the pod's group in every hierarchy.
    manifest.pod.linux.cgroup_parent = f"{node.cgroup}/vm"
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        if (hierarchy / "cgroup.procs").exists():
            (hierarchy / node.cgroup.strip("/") / "vm").mkdir(parents=True, exist_ok=True)
    return VmPod(node, manifest)


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonPod]:
    """The DaemonSet's pod runs; the guest's image is where the example of a translation says."""
    build_image()
    with ClusterNode() as node:
        _network(node)
        containerd = Containerd(node, "a", 1).start()
        containerd.load_images()
        pod = DaemonPod(node, containerd)
        pod.import_image()
        pod.start()
        images = node.path("/srv/virtlet")
        images.mkdir()
        shutil.copy(ROOT / "build" / "tiny.qcow2", images)
        yield pod
        pod.client.close()


def _get(node: ClusterNode, address: str) -> str:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://{address}/", timeout=5) as reply:
            return str(reply.read().decode())

    return netns.inside(Path(f"/proc/{node.pid}/ns/net"), fetch)


def test_the_manager_in_the_pod_has_no_more_than_its_unit_allows(daemon: DaemonPod) -> None:
    (pid,) = (
        pid
        for pid, argv in daemon.node.processes().items()
        if argv[3:5] == ["virtlet.cli.main", "serve"]
    )
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    allowed = confined.mask(confined.settings(ROOT / "deploy" / "virtlet.service"))
    assert int(status["CapBnd"], 16) & ~allowed == 0
    assert int(status["CapEff"], 16) & ~allowed == 0
    assert status["NoNewPrivs"] == "1"


def test_the_image_reads_images_of_ceph(daemon: DaemonPod) -> None:
    """Its QEMU looks for a cluster, where one without the driver would know none."""
    options = "rbd,node-name=disk,pool=rbd,image=database-1,conf=/dev/null"
    done = daemon.run("qemu-storage-daemon", "--blockdev", options)
    assert done.exit_code == 1
    assert b"error connecting" in done.stderr


def test_the_image_can_send_traces_and_encrypt_checkpoints(daemon: DaemonPod) -> None:
    code = "import virtlet.otlp_traces, cryptography"
    done = daemon.run("/usr/lib/virtlet/bin/python3", "-c", code)
    assert done.exit_code == 0, done.stderr


def test_the_image_has_what_browsers_get_of_the_console(daemon: DaemonPod) -> None:
    """As deploy/console starts it, but for the environment by which a cluster tells of itself."""
    text = (ROOT / "deploy" / "console" / "console.yaml").read_text()
    deployment = next(iter(yaml.safe_load_all(text)))
    (console, _) = deployment["spec"]["template"]["spec"]["containers"]
    done = daemon.run(*console["command"], *console["args"])
    assert done.exit_code == 1
    assert b"--behind is for a console in a cluster" in done.stderr


def test_a_path_of_the_image_is_no_volume_of_the_node(daemon: DaemonPod) -> None:
    vm = _vm_pod(daemon.node, "elsewhere")
    vm.manifest.container.mounts.add(container_path="/data", host_path="/home")
    with pytest.raises(CallFailed, match="/home of the node is not shared with the pod"):
        vm.up()
    vm.down()


def test_a_vm_of_an_older_image_outlives_the_pod_and_its_image_and_obeys_the_next_one(
    daemon: DaemonPod,
) -> None:
    node = daemon.node
    daemon.delete()
    daemon.import_image(build_older_image())
    daemon.start()
    assert "1.99.0" in daemon.image
    vm = _vm_pod(node)
    volume = f"pods/{vm.manifest.pod.metadata.uid}/volumes/kubernetes.io~empty-dir/data"
    share = node.path("/var/lib/kubelet") / volume
    share.mkdir(parents=True)
    vm.manifest.container.mounts.add(container_path="/data", host_path=f"/var/lib/kubelet/{volume}")
    vm.up()
    address = vm.address()
    until(lambda: "login:" in vm.console(), "the guest's login", BOOT_TIMEOUT)
    vm.sh("until grep -q ' /data virtiofs' /proc/mounts; do sleep 0.2; done; echo one >/data/file")
    before = vm.processes()
    assert len(before) >= 2

    daemon.delete()
    daemon.remove_image()
    assert vm.processes() == before
    assert _get(node, address)

    daemon.import_image()
    assert daemon.image == daemon.container_spec["image"]
    daemon.start()
    assert vm.status().state == cri.CONTAINER_RUNNING
    assert vm.processes() == before
    vm.sh("cat /data/file && echo two >/data/file && echo still here >/dev/console")
    assert (share / "file").read_text() == "two\n"
    until(lambda: "still here" in vm.console(), "what the guest printed since")
    vm.sh("(sleep 1; reboot) >/dev/null 2>&1 &")
    until(lambda: vm.console().count("login:") >= 2, "the guest's second login", BOOT_TIMEOUT)
    assert before.items() <= vm.processes().items()

    daemon.delete(force=True)
    daemon.start()
    assert vm.sh("cat /data/file") == "two\n"
    assert before.items() <= vm.processes().items()

    vm.down()
    assert vm.processes() == {}
    assert list(share.parent.iterdir()) == [share]
    assert node.mounts("/var/lib/virtlet") == []
    daemon.delete()
    left = node.processes()
    assert not [argv for argv in left.values() if "virtlet" in " ".join(argv)]
