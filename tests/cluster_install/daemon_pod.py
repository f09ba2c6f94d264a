"""The pod of the DaemonSet as a kubelet asks containerd for it, on a node of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster_install.manifests import ROOT, find
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.containerd import Containerd
from tests.criproxy.real.node import Node
from tests.fakes.kubelet.volumes import VERSION
from tests.polling import until
from virtlet.cri import api_pb2 as cri

IMAGE = ROOT / "build" / "virtlet-image.tar"
OLDER_IMAGE = ROOT / "build" / "virtlet-older-image.tar"
OLDER = "3830af6"
"""The oldest code that OLDER_IMAGE may have; a release's tag in its place, once there is one."""
_OWN = ("/var/lib", "/var/log", "/opt", "/mnt", "/srv")
"""Directories of a node that this one has empty, and of its own."""
_PROPAGATION = {
    "None": cri.PROPAGATION_PRIVATE,
    "HostToContainer": cri.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": cri.PROPAGATION_BIDIRECTIONAL,
}
_KNOWN = {"terminationGracePeriodSeconds", "containers", "volumes", "hostPID", "hostNetwork"}
_ELSEWHERE = {
    *("nodeSelector", "tolerations", "priorityClassName", "serviceAccountName", "dnsPolicy"),
    "automountServiceAccountToken",
}
"""Fields that a scheduler or API server acts on, and a kubelet where there is a cluster."""


def build_image() -> Path:
    """The node's image, built where its recipe or the code has changed."""
    subprocess.run([ROOT / "images" / "node" / "build.sh", IMAGE], check=True)
    return IMAGE


def build_older_image() -> Path:
    """An image of another version, with code of this tree's history on the same Debian.

    A clone without history has today's code under the other version.
    """
    code = (
        "virtlet",
        "vmwrapper",
        "criproxy",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    )
    git = ["git", "-C", str(ROOT), "archive", OLDER, *code]
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place)
        history = subprocess.run(git, capture_output=True, check=False)
        if history.returncode == 0:
            subprocess.run(["tar", "-x", "-C", place], input=history.stdout, check=True)
        else:
            subprocess.run(["cp", "-a", *(ROOT / name for name in code), place], check=True)
        setup = tree / "setup.cfg"
        lines = setup.read_text().splitlines(keepends=True)
        is_version = ["version = 1.99.0\n" if x.startswith("version = ") else x for x in lines]
        setup.write_text("".join(is_version))
        # What the code lies on is today's, so that its layers are those of the other image.
        shutil.copytree(ROOT / "images" / "node", tree / "images" / "node")
        shutil.copy2(ROOT / "requirements-build.txt", place)
        subprocess.run([tree / "images" / "node" / "build.sh", OLDER_IMAGE], check=True)
    return OLDER_IMAGE


class ClusterNode(Node):
    """A node with the directories that the DaemonSet shares with it, at their real places.

    They are of its own; mounts are shared, as systemd shares them.
    """

    def __init__(self) -> None:
        super().__init__()
        for place in _OWN:
            self.path(place).mkdir(parents=True)
            self.run("mount", "--bind", str(self.path(place)), place)
        upper, work = self.dir / "etc", self.dir / "etc-work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir=/etc,upperdir={upper},workdir={work}"
        self.run("mount", "-t", "overlay", "-o", layers, "overlay", "/etc")
        self.run("mkdir", "-p", "/etc/cni/net.d", "/var/lib/kubelet/pods", "/opt/cni/bin")
        self.run("mkdir", "-p", "/var/log/pods")
        self.run("mount", "--bind", "/usr/lib/cni", "/opt/cni/bin")
        self.run("mount", "--make-rshared", "/")

    def path(self, place: str) -> Path:
        """Where the test finds what the node has at a place below `_OWN`."""
        (own,) = (each for each in _OWN if Path(place).is_relative_to(each))
        return self.dir / own.strip("/").replace("/", "-") / Path(place).relative_to(own)

    def seen(self, place: str) -> Path:
        """The same through the node's own mounts."""
        return Path(f"/proc/{self.pid}/root", place.lstrip("/"))

    def mounts(self, below: str) -> list[str]:
        """Where something is mounted on the node below a place."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{below}/")]

    def processes(self) -> dict[int, list[str]]:
        """All processes of the node: their arguments by process id, as the test sees it."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found: dict[int, list[str]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns" / "pid") == namespace:
                    text = (entry / "cmdline").read_bytes().decode(errors="replace")
                    found[int(entry.name)] = text.split("\0")[:-1]
            except OSError:
                continue
        return found


class DaemonPod:
    """The DaemonSet's pod; each `start` makes another, as its controller does.

    Args:
        node: where it runs.
        containerd: which runs it.
    """

    def __init__(self, node: ClusterNode, containerd: Containerd) -> None:
        self.node, self._containerd = node, containerd
        self.spec: dict[str, Any] = find("DaemonSet", "virtlet")["spec"]["template"]["spec"]
        (self.container_spec,) = self.spec["containers"]
        self.client = Client(containerd.socket)
        self.image: str = self.container_spec["image"]
        """What its container is made of."""
        self.pod = self.container = ""
        self._made = 0

    def import_image(self, archive: Path = IMAGE) -> None:
        """Give containerd an image, of which the next pod is."""
        said = self._ctr("images", "import", str(archive))
        (self.image,) = set(re.findall(r"localhost/virtlet-node:[\w.-]+", said))

    def remove_image(self) -> None:
        """Remove it, with all that containerd keeps of it, as its garbage collection does."""
        self._ctr("images", "rm", "--sync", self.image)

    def _ctr(self, *arguments: str) -> str:
        command = ["ctr", "-a", str(self._containerd.socket), "-n", "k8s.io", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    def start(self) -> None:
        """Make the pod as the manifest says, and wait until its startup probe succeeds."""
        self._made += 1
        config = self._sandbox(f"virtlet-{self._made}")
        self.pod = self.client.runtime.RunPodSandbox(
            cri.RunPodSandboxRequest(config=config), timeout=60
        ).pod_sandbox_id
        request = cri.CreateContainerRequest(
            pod_sandbox_id=self.pod, config=self._config(), sandbox_config=config
        )
        self.container = self.client.runtime.CreateContainer(request, timeout=60).container_id
        start = cri.StartContainerRequest(container_id=self.container)
        self.client.runtime.StartContainer(start, timeout=60)
        until(self._probe, "the manager", timeout=120)

    def _probe(self) -> bool:
        request = cri.ContainerStatusRequest(container_id=self.container)
        status = self.client.runtime.ContainerStatus(request).status
        assert status.state == cri.CONTAINER_RUNNING, self.log()
        return bool(
            self.run(*self.container_spec["startupProbe"]["exec"]["command"]).exit_code == 0
        )

    def run(self, *command: str) -> Any:
        """Run a command in the container, as `kubectl exec` does."""
        request = cri.ExecSyncRequest(container_id=self.container, cmd=command, timeout=20)
        return self.client.runtime.ExecSync(request, timeout=30)

    def log(self) -> str:
        """What the manager has logged."""
        path = self.node.seen(f"/var/log/pods/virtlet-{self._made}/virtlet/0.log")
        return path.read_text() if path.exists() else ""

    def delete(self, *, force: bool = False) -> None:
        """Delete the pod: stop the container with its grace or by force, and remove all."""
        grace = 0 if force else self.spec["terminationGracePeriodSeconds"]
        stop = cri.StopContainerRequest(container_id=self.container, timeout=grace)
        self.client.runtime.StopContainer(stop, timeout=grace + 30)
        remove = cri.RemoveContainerRequest(container_id=self.container)
        self.client.runtime.RemoveContainer(remove, timeout=60)
        stop_pod = cri.StopPodSandboxRequest(pod_sandbox_id=self.pod)
        self.client.runtime.StopPodSandbox(stop_pod, timeout=60)
        remove_pod = cri.RemovePodSandboxRequest(pod_sandbox_id=self.pod)
        self.client.runtime.RemovePodSandbox(remove_pod, timeout=60)

    # From the manifest to the CRI: every field is known here.

    def _namespaces(self) -> Any:
        node = cri.NamespaceMode.NODE
        return cri.NamespaceOption(
            network=node if self.spec["hostNetwork"] else cri.NamespaceMode.POD,
            pid=node if self.spec["hostPID"] else cri.NamespaceMode.CONTAINER,
            ipc=cri.NamespaceMode.POD,
        )

    def _sandbox(self, name: str) -> Any:
        assert self.spec.keys() == _KNOWN | _ELSEWHERE
        logs = f"/var/log/pods/{name}"
        self.node.seen(f"{logs}/virtlet").mkdir(parents=True)
        context = cri.LinuxSandboxSecurityContext(
            namespace_options=self._namespaces(),
            privileged=self.container_spec["securityContext"]["privileged"],
        )
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="kube-system"),
            log_directory=logs,
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=f"{self.node.cgroup}/{name}", security_context=context
            ),
        )

    def _config(self) -> Any:
        spec = self.container_spec
        assert spec.keys() == {
            *("name", "image", "imagePullPolicy", "args", "securityContext", "resources"),
            *("terminationMessagePath", "startupProbe", "volumeMounts", "env"),
        }
        node_name = {"fieldRef": {"fieldPath": "spec.nodeName"}}
        assert spec["env"] == [{"name": "KUBE_NODE_NAME", "valueFrom": node_name}]
        assert spec["securityContext"] == {"privileged": True}
        image = self.client.image.ImageStatus(
            cri.ImageStatusRequest(image=cri.ImageSpec(image=self.image))
        ).image
        assert image.id, f"containerd has no {self.image}"
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        return cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=spec["name"]),
            image=cri.ImageSpec(image=image.id, user_specified_image=self.image),
            args=spec["args"],
            envs=[cri.KeyValue(key="KUBE_NODE_NAME", value=b"node-1")],
            log_path="virtlet/0.log",
            mounts=[self._mount(mount, volumes[mount["name"]]) for mount in spec["volumeMounts"]],
            linux=cri.LinuxContainerConfig(
                security_context=cri.LinuxContainerSecurityContext(
                    namespace_options=self._namespaces(), privileged=True
                )
            ),
        )

    def _mount(self, mount: Mapping[str, Any], volume: Mapping[str, Any]) -> Any:
        assert mount.keys() <= {"name", "mountPath", "mountPropagation", "readOnly"}
        return cri.Mount(
            host_path=self._source(volume),
            container_path=mount["mountPath"],
            readonly=mount.get("readOnly", False),
            propagation=_PROPAGATION[mount.get("mountPropagation", "None")],
        )

    def _source(self, volume: Mapping[str, Any]) -> str:
        match volume:
            case {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}:
                self.node.seen(path).mkdir(parents=True, exist_ok=True)
                return str(path)
            case {"hostPath": {"path": path, "type": "Directory"}}:
                assert self.node.seen(path).is_dir()
                return str(path)
            case {"configMap": {"name": name}}:
                return self._config_map(name)
        raise AssertionError(f"this kubelet makes no volume such as {volume}")

    def _config_map(self, name: str) -> str:
        """A ConfigMap as a kubelet writes it: links to a version of all files."""
        place = f"/var/lib/kubelet/pods/virtlet-{self._made}/volumes/kubernetes.io~configmap/{name}"
        directory = self.node.seen(place)
        (directory / VERSION).mkdir(parents=True)
        data = find("ConfigMap", name.rpartition("-")[0])["data"]
        for file, text in data.items():
            (directory / VERSION / file).write_text(text)
            (directory / file).symlink_to(f"..data/{file}")
        (directory / "..data").symlink_to(VERSION)
        return place
