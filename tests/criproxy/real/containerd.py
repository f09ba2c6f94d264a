"""Debian's containerd with runc, with its own directories, network and images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.criproxy.real.images import BUSYBOX, PAUSE, write_image
from tests.criproxy.real.node import Node
from tests.polling import until

_CONFIG = """
version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{dir}/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE nobody may lower a process' score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
"""


class Containerd:
    """One containerd.

    Args:
        node: where it runs.
        name: of its directory and bridge.
        subnet: third byte of its pods' network, 10.89.SUBNET.0/24.
    """

    def __init__(self, node: Node, name: str, subnet: int) -> None:
        self._node = node
        self.dir = node.dir / name
        self.socket = self.dir / "c.sock"
        self.log = self.dir / "log"
        (self.dir / "cni").mkdir(parents=True)
        (self.dir / "config.toml").write_text(
            _CONFIG.format(dir=self.dir, socket=self.socket, pause=PAUSE)
        )
        bridge = {
            "type": "bridge",
            "bridge": f"cni-{name}"[:15],
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.dir / "ipam"),
                "subnet": f"10.89.{subnet}.0/24",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        (self.dir / "cni" / "10.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [bridge]})
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Containerd:
        """Start it and wait until it answers."""
        config = str(self.dir / "config.toml")
        self._process = self._node.spawn(self.log, "containerd", "-c", config)
        until(self._answers)
        return self

    def _answers(self) -> bool:
        done = subprocess.run(
            ["ctr", "-a", str(self.socket), "version"], capture_output=True, check=False
        )
        return done.returncode == 0

    def load_images(self) -> None:
        """Import the images of the tests."""
        for name, command in ((PAUSE, ["sleep", "1000000"]), (BUSYBOX, ["sh"])):
            self.load_image(name, command)

    def load_image(self, name: str, command: list[str]) -> None:
        """Import an image whose containers run this command."""
        archive = write_image(self.dir / "image.tar", name, command)
        subprocess.run(
            ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive)],
            check=True,
            capture_output=True,
        )
        archive.unlink()

    def kill(self) -> None:
        """Kill it; its pods go on."""
        assert self._process is not None
        # nsenter is containerd's parent outside; containerd itself is its only child.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self._process.wait(10)
