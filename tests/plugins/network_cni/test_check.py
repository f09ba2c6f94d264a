"""CHECK: a further VM starts in a pod only if its network is still as CNI's plugins made it."""

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.links import shown
from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.plugins.network_cni.test_launch import machine
from virtlet.errors import PodBroken
from virtlet.host import netns
from virtlet.model.network import Network
from virtlet.model.pod import Pod, PortMapping
from virtlet.plugins.network_cni.plugin import Plugin

_LAUNCH_AGAIN = """
import pickle, sys
from pathlib import Path
from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.plugins.network_cni.test_check import launch
node = TestNode(Path(sys.argv[1]))
pod, network = pickle.loads((node.root / "pod").read_bytes())
launch(node, node.plugin(), pod, network)
"""


def launch(node: TestNode, plugin: Plugin, pod: Pod, network: Network) -> None:
    """A VM's start, as far as the plugin sees it."""
    assert plugin.virtlet_launch(machine(node.root, network, pod=pod)) is None


def test_the_first_vm_waits_for_no_check_and_a_further_one_is_told_what_is_wrong(
    node: TestNode,
) -> None:
    """CHECK gets what ADD returned; what it says, the error says, and the taps are free again."""
    missing = {"print": {"cniVersion": "1.0.0", "code": 101, "msg": "a rule is missing"}, "exit": 1}
    node.configure(node.bridge(), node.fake(CHECK=missing))
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    launch(node, plugin, pod, network)
    assert [call["command"] for call in node.calls()] == ["ADD"]
    for _ in range(2):
        with pytest.raises(PodBroken, match="failed to CHECK: code 101: a rule is missing.*again"):
            launch(node, plugin, pod, network)
    add, check, _ = node.calls()
    assert check["command"] == "CHECK"
    assert check["config"]["prevResult"] == add["config"]["prevResult"]
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_a_network_in_order_passes_time_and_again_and_serves_the_next_guest(node: TestNode) -> None:
    """Debian's plugins find what the guest had taken over, and the guest gets it back."""
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    node.configure(node.bridge(ipMasq=True), portmap)
    plugin = node.plugin()
    pod = node.pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    network = set_up(plugin, pod)
    for _ in range(3):
        launch(node, plugin, pod, network)
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_routes_of_both_families_are_found(node: TestNode) -> None:
    """So are those that the ptp plugin made."""
    ptp = {**node.bridge(ipMasq=True), "type": "ptp"}
    ptp["ipam"]["ranges"].append([{"subnet": "fd99::/64"}])
    ptp["ipam"]["routes"].append({"dst": "::/0"})
    node.configure(ptp)
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    for _ in range(3):
        launch(node, plugin, pod, network)
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("damage", ["bridge", "veth"])
def test_damage_on_the_node_is_found(node: TestNode, damage: str) -> None:
    """A bridge or interface that somebody removed breaks the pod."""
    node.configure(node.bridge(), {"type": "portmap", "capabilities": {"portMappings": True}})
    plugin = node.plugin()
    pod = node.pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    network = set_up(plugin, pod)
    launch(node, plugin, pod, network)
    (veth,) = (link for link in node.links() if link.startswith("veth"))
    command = {
        "bridge": "ip link set cni0 down; ip link delete cni0",
        "veth": f"ip link delete {veth}",
    }[damage]
    subprocess.run(["sh", "-ec", command], check=True)
    with pytest.raises(PodBroken, match="failed to CHECK"):
        launch(node, plugin, pod, network)
    plugin.virtlet_teardown_network(pod, network)
    again = node.pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    network = set_up(plugin, again)
    for _ in range(2):
        launch(node, plugin, again, network)
    plugin.virtlet_teardown_network(again, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("more", [{"disableCheck": True}, {"cniVersion": "0.3.1"}])
def test_networks_that_forbid_or_do_not_know_check_are_not_asked(
    node: TestNode, more: dict[str, Any]
) -> None:
    """Their VMs start as ever."""
    node.configure(node.bridge(), node.fake(), **more)
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    for _ in range(2):
        launch(node, plugin, pod, network)
    assert [call["command"] for call in node.calls()] == ["ADD"]
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("reason", ["later", "missing"])
def test_a_check_that_cannot_be_made_keeps_no_vm_from_its_start(
    node: TestNode, reason: str
) -> None:
    """A plugin that is missing, or says to try again later, has found nothing wrong."""
    later = {"print": {"cniVersion": "1.0.0", "code": 11, "msg": "starting"}, "exit": 1}
    node.configure(node.bridge(), node.fake(CHECK=later))
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    program = node.plugin_directory / "cni_plugin"
    target = program.readlink()
    if reason == "missing":
        program.unlink()
    for _ in range(2):
        launch(node, plugin, pod, network)
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    if reason == "missing":
        program.symlink_to(target)
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("then", ["launch", "teardown"])
def test_a_manager_killed_during_a_check_leaves_what_the_next_one_makes_good(
    node: TestNode, then: str
) -> None:
    """The veth has its addresses back then; the next start hands them over, and DEL finds them."""
    go = node.root / "go"
    node.configure(node.bridge(ipMasq=True), node.fake(CHECK={"run": f"test -e {go} || sleep 30"}))
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    launch(node, plugin, pod, network)
    node.end(plugin)
    (node.root / "pod").write_bytes(pickle.dumps((pod, network)))
    argv = [sys.executable, "-c", _LAUNCH_AGAIN, str(node.root)]
    manager = subprocess.Popen(argv, cwd=Path(__file__).parents[3])
    while node.calls()[-1]["command"] != "CHECK":
        assert manager.poll() is None
        time.sleep(0.05)
    manager.kill()
    manager.wait()
    assert network.netns is not None
    assert netns.inside(network.netns, _addresses_of_eth0) == ("10.99.0.2/24",)
    plugin = node.plugin()
    if then == "launch":
        go.touch()
        launch(node, plugin, pod, network)
        assert netns.inside(network.netns, _addresses_of_eth0) == ()
        with node.guest(network) as guest:
            assert guest.dhcp()
            assert guest.reaches("10.99.0.1")
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def _addresses_of_eth0() -> tuple[str, ...]:
    (eth0,) = (link for link in shown() if link.name == "eth0")
    return tuple(address for address in eth0.addresses if ":" not in address)
