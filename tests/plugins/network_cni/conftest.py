"""A node to set up pod networks on: a network namespace of its own, with Debian's CNI plugins."""

import contextlib
import json
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from tests.fakes.links import loopback_up, names
from virtlet.errors import VirtletError
from virtlet.host import netns
from virtlet.host.links import open_tap
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.model.pod import Pod, PodConfig, PodMetadata, Profile
from virtlet.plugins.network_cni.passed_nics import Hardware
from virtlet.plugins.network_cni.plugin import Plugin
from virtlet.testing.models import make_node
from virtlet.testing.namespaces import enter_namespace
from virtlet.testing.plugged import Plugged, plugged

CNI_PLUGINS = Path("/usr/lib/cni")
_FAKES = Path(__file__).parents[2] / "fakes"
FAKE_PLUGINS = (_FAKES / "cni_plugin.py", _FAKES / "cni_meta.py")


@define
class TestNode:
    """Directories, a namespace and a network plugin that works in them."""

    __test__ = False

    root: Path
    subnet: str = "10.99.0.0/24"
    calico_subnet_size: int = 24
    plugins: list[Plugin] = field(factory=list)
    pods: list[Pod] = field(factory=list)
    hardware: Hardware | None = None
    """PCI devices that guests may have."""

    @property
    def configuration(self) -> Path:
        return self.root / "net.d"

    @property
    def plugin_directory(self) -> Path:
        """Debian's CNI plugins, and our own fakes."""
        directory = self.root / "bin"
        if not directory.exists():
            directory.mkdir()
            for path in (*CNI_PLUGINS.iterdir(), *FAKE_PLUGINS):
                (directory / path.stem).symlink_to(path)
        return directory

    def bridge(self, **more: Any) -> dict[str, Any]:
        """Debian's bridge plugin with addresses kept below this node's own directory."""
        ipam = {
            "type": "host-local",
            "dataDir": str(self.root / "ipam"),
            "ranges": [[{"subnet": self.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam, **more}

    def configure(
        self, *plugins: dict[str, Any], name: str = "10-test.conflist", **more: Any
    ) -> None:
        """Write the network's configuration."""
        self.configuration.mkdir(exist_ok=True)
        document = {"cniVersion": "1.0.0", "name": "test", "plugins": list(plugins), **more}
        (self.configuration / name).write_text(json.dumps(document))

    def plugin(self) -> Plugin:
        """A started plugin, as a manager would have it; ended with the test.

        Pods with a directory are those that the manager's store has, also of another manager.
        """
        plugin = Plugin(self.hardware)
        options = {
            "cniPluginDir": self.plugin_directory,
            "cniConfigDir": self.configuration,
            "calicoSubnetSize": self.calico_subnet_size,
            "enableSriov": self.hardware is not None,
        }
        plugin.virtlet_configure(Settings(values=options), self.node())
        stored = (self.node().data_dir / "pods").glob("*")
        plugin.virtlet_reconcile([self._pod(path.name) for path in stored])
        self.plugins.append(plugin)
        return plugin

    def up(self, **config: Any) -> tuple[Plugin, Pod, Network]:
        """A started plugin and the network that it made of a new pod."""
        plugin, pod = self.plugin(), self.pod(**config)
        return plugin, pod, set_up(plugin, pod)

    def down(self, plugin: Plugin, pod: Pod, network: Network | None) -> None:
        """Take the network of the last pod down; nothing is left on the node."""
        plugin.virtlet_teardown_network(pod, network)
        assert self.leftovers() == []

    def end(self, plugin: Plugin) -> None:
        """Shut a plugin down, as with its manager."""
        self.plugins.remove(plugin)
        plugin.virtlet_shutdown()

    def node(self) -> Node:
        return evolve(make_node(self.root / "data", 0, 0), run_dir=self.root / "run")

    def pod(self, id: str = "", **config: Any) -> Pod:
        """A pod with a name of its own, and with an id of its own unless it is given."""
        pod = self._pod(id or secrets.token_hex(16), **config)
        pod.directory.mkdir(parents=True, exist_ok=True)
        self.pods.append(pod)
        return pod

    def _pod(self, pod_id: str, **config: Any) -> Pod:
        metadata = PodMetadata(name="web", uid=secrets.token_hex(8), namespace="default")
        return Pod(
            id=pod_id,
            config=PodConfig(metadata=metadata, **config),
            profile=Profile(),
            directory=self.node().data_dir / "pods" / pod_id,
            created_at=time.time_ns(),
        )

    def fake(self, **todo: Any) -> dict[str, Any]:
        """A plugin that does as it is told, see `tests/fakes/cni_plugin.py`."""
        return {"type": "cni_plugin", "log": str(self.root / "calls.log"), **todo}

    def ipam(self, subnet: str, *routes: str) -> dict[str, Any]:
        """Addresses of another subnet, with routes to it by the subnet's gateway."""
        return {
            "type": "host-local",
            "dataDir": str(self.root / "ipam"),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": route} for route in routes],
        }

    def meta(self, *delegates: dict[str, Any]) -> dict[str, Any]:
        """A meta-plugin as Multus, see `tests/fakes/cni_meta.py`."""
        status = str(self.root / "status.json")
        return {"type": "cni_meta", "delegates": list(delegates), "status": status}

    def holder(self) -> int:
        """A process of the node's namespace: this one."""
        return threading.get_native_id()

    def calls(self) -> list[dict[str, Any]]:
        """What the fake plugin was called with."""
        return [json.loads(line) for line in (self.root / "calls.log").read_text().splitlines()]

    @contextmanager
    def guest(self, network: Network, number: int = 0) -> Iterator[Plugged]:
        """A guest on one of a pod's NICs, for a while."""
        interface = network.nics[number]
        assert network.netns is not None
        tap = netns.inside(network.netns, lambda: open_tap(interface.device))
        with plugged(self.root / "guests" / secrets.token_hex(4), tap, interface.mac) as guest:
            yield guest

    def fakes_running(self) -> list[int]:
        """Process ids of fake plugins of this node that have not ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"CNI_PATH={self.plugin_directory}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def server_pid(self, pod: Pod) -> int:
        """Process id of a pod's DHCP server."""
        state = self.node().state_dir("network_cni") / "pods" / pod.id
        return int((state / "dnsmasq.pid").read_text())

    def leftovers(self) -> list[str]:
        """What pods left on the node: interfaces, addresses, rules, files, processes."""
        found = [f"interface {name}" for name in sorted(self.links() - {"cni0"})]
        found += [f"rule {line}" for line in _pod_rules()]
        found += [f"namespace {path.name}" for path in (self.node().run_dir / "netns").glob("*")]
        state = self.node().state_dir("network_cni") / "pods"
        found += [f"state {path}" for path in state.rglob("*")]
        taken = (p for p in (self.root / "ipam").rglob("*") if p.is_file())
        found += [f"address {p.name}" for p in taken if p.name[0].isdigit() or ":" in p.name]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [m for m in mounts if str(self.node().run_dir) in m]
        found += [f"process {line}" for line in _processes(str(self.root / "data"))]
        return found

    def links(self) -> set[str]:
        """Names of the node's interfaces."""
        return set(names()) - {"lo"}


def set_up(plugin: Plugin, pod: Pod, **adjusted: Any) -> Network:
    """A pod's network as the core has it made, with something else for its first NIC."""
    network = plugin.virtlet_setup_network(pod)
    first, *others = network.nics
    network = evolve(network, nics=(evolve(first, **adjusted), *others))
    plugin.virtlet_serve_network(pod, network)
    return network


def gets_ipv6(guest: Plugged) -> bool:
    """Whether DHCPv6 answers; asked several times, as a client of a loaded machine would."""
    return any(guest.dhcp6() is not None for _ in range(5))


def _pod_rules() -> list[str]:
    """Rules of the node's firewall that name a pod's address or chain."""
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    return [line for line in saved.splitlines() if re.search(r"CNI-[0-9a-f]{20}|10\.99\.", line)]


def _processes(text: str) -> list[str]:
    """Command lines that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command:
                found.append(command)
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[TestNode]:
    namespace = tmp_path / "node.netns"
    netns.create(namespace)
    node = TestNode(tmp_path)
    try:
        with enter_namespace(namespace):
            loopback_up()
            try:
                yield node
            finally:
                for plugin in list(node.plugins):
                    node.end(plugin)
                last = node.plugin()
                for pod in node.pods:  # whatever a failed test left behind
                    with contextlib.suppress(VirtletError):
                        last.virtlet_teardown_network(pod, None)
                node.end(last)
    finally:
        netns.delete(namespace)
