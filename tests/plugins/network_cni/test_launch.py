"""What is looked at before a VM starts in a network, and the NICs that its emulator gets."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.links import shown
from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.polling import until
from virtlet.errors import FailedPrecondition, PodBroken
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network, Nic
from virtlet.model.pod import Pod, PortMapping
from virtlet.plugins.libvirt_qemu import nics
from virtlet.plugins.network_cni.plugin import Plugin
from virtlet.testing.models import make_machine


def close(part: LaunchPart) -> None:
    """What the core does once a launch is over."""
    for item in part.fds:
        os.close(item.fd)


def emulator_says(part: LaunchPart, kind: str, question: str) -> str:
    """Start QEMU with what the plugin contributes, as vmwrapper would, and ask its monitor."""
    numbers = {f"{{fd:{fd.name}}}": str(fd.fd) for fd in part.fds}
    arguments = [
        re.sub(r"\{fd:\w+\}", lambda match: numbers[match.group()], argument)
        for argument in part.arguments
    ]
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-machine", kind, "-accel", "tcg", "-S", "-nodefaults"),
            *("-display", "none", "-monitor", "stdio", *arguments),
        ],
        input=f"{question}\nquit\n",
        capture_output=True,
        text=True,
        pass_fds=[fd.fd for fd in part.fds],
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["q35", "pc"])
def test_emulator_takes_the_nics(node: TestNode, kind: str) -> None:
    """QEMU starts with the taps' descriptors, and the NIC has MAC and slot as asked."""
    node.configure(node.bridge(mtu=1400))
    plugin, pod, network = node.up()
    made = make_machine(node.root, pod, flavor=Flavor(machine=kind), network=network)
    assert plugin.virtlet_launch(made) is None
    part = nics.launch_part(made)
    for open_it in (plugin.virtlet_launch, nics.launch_part):
        with pytest.raises(FailedPrecondition, match="tap vtap0: another process holds it"):
            open_it(made)
    told = emulator_says(part, kind, "info network\ninfo pci")
    assert f"model=virtio-net-pci,macaddr={network.nics[0].mac}" in told
    assert "Bus  0, device  16, function 0:" in told
    close(part)
    close(nics.launch_part(made))
    node.down(plugin, pod, network)


def test_emulator_takes_several_queues_of_a_nic_and_boots_from_it(node: TestNode) -> None:
    """A tap of the node's own namespace, with a descriptor for each queue."""
    with Links() as net:
        net.add_tap("queues0", multi_queue=True)
    nic = Nic(
        name="eth0", mac="02:00:00:00:00:01", mtu=1500, device="queues0", queues=2, boot_order=1
    )
    part = nics.launch_part(make_machine(node.root, network=Network(netns=None, nics=(nic,))))
    assert [fd.name for fd in part.fds] == ["tap0", "tap1"]
    told = emulator_says(part, "q35", "info network\ninfo qtree")
    assert told.count("type=tap") == 2
    assert "mq = true" in told
    assert part.arguments[3].endswith(",bootindex=1")
    close(part)
    with Links() as net:
        net.delete("queues0")


def test_emulator_takes_several_queues_of_a_pods_nic(node: TestNode) -> None:
    """The tap is made for as many as the NIC has in the end."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod, queues=2)
    made = make_machine(node.root, pod, network=network)
    assert plugin.virtlet_launch(made) is None
    part = nics.launch_part(made)
    assert emulator_says(part, "q35", "info network").count("type=tap") == 2
    close(part)
    node.down(plugin, pod, network)


def test_a_nic_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    nic = Nic(name="net1", mac="02:00:00:00:00:01", mtu=1500, kind="hostdev", device="0000:01:00.0")
    with pytest.raises(FailedPrecondition, match="NIC net1 is of kind 'hostdev'"):
        nics.launch_part(make_machine(tmp_path, network=Network(netns=None, nics=(nic,))))


def test_networks_of_others(node: TestNode) -> None:
    """A network that another plugin made is left to it."""
    network = Network(netns=None, nics=(Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500),))
    assert (
        node.plugin().virtlet_launch(make_machine(node.root, node.pod(), network=network)) is None
    )


def test_a_network_of_the_release_that_marked_them(node: TestNode) -> None:
    """It is known by its notes, which say less of its NICs, and checked and served as ever."""
    node.configure(node.bridge())
    first = node.plugin()
    pod = node.pod()
    network = evolve(set_up(first, pod), details='{"made_by": "network_cni"}')
    node.end(first)
    notes = first.networks.store.directory(pod.id) / "state.json"
    state = json.loads(notes.read_text())
    for nic in state["nics"]:
        del nic["guest_mac"], nic["queues"]
    notes.write_text(json.dumps(state))
    plugin = node.plugin()
    for _ in range(2):
        assert plugin.virtlet_launch(make_machine(node.root, pod, network=network)) is None
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    assert network.netns is not None
    netns.delete(network.netns)
    with pytest.raises(PodBroken, match="is gone"):
        plugin.virtlet_launch(make_machine(node.root, pod, network=network))
    plugin.virtlet_teardown_network(pod, network)


def test_namespace_is_gone(node: TestNode) -> None:
    """A pod without its namespace is of no use any more."""
    node.configure(node.bridge())
    plugin, pod, network = node.up()
    assert network.netns is not None
    netns.delete(network.netns)
    with pytest.raises(PodBroken, match="is gone: the pod is stopped; run it again"):
        plugin.virtlet_launch(make_machine(node.root, pod, network=network))
    plugin.virtlet_teardown_network(pod, network)


_LAUNCH_AGAIN = """
import pickle, sys
from pathlib import Path
from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.plugins.network_cni.test_launch import launch
node = TestNode(Path(sys.argv[1]))
pod, network = pickle.loads((node.root / "pod").read_bytes())
launch(node, node.plugin(), pod, network)
"""


def launch(node: TestNode, plugin: Plugin, pod: Pod, network: Network) -> None:
    """A VM's start, as far as the plugin sees it."""
    assert plugin.virtlet_launch(make_machine(node.root, pod, network=network)) is None


def test_the_first_vm_waits_for_no_check_and_a_further_one_is_told_what_is_wrong(
    node: TestNode,
) -> None:
    """CHECK gets what ADD returned; what it says, the error says, and the taps are free again."""
    missing = {"print": {"cniVersion": "1.0.0", "code": 101, "msg": "a rule is missing"}, "exit": 1}
    node.configure(node.bridge(), node.fake(CHECK=missing))
    plugin, pod, network = node.up()
    launch(node, plugin, pod, network)
    assert [call["command"] for call in node.calls()] == ["ADD"]
    for _ in range(2):
        with pytest.raises(PodBroken, match="failed to CHECK: code 101: a rule is missing.*again"):
            launch(node, plugin, pod, network)
    add, check, _ = node.calls()
    assert check["command"] == "CHECK"
    assert check["config"]["prevResult"] == add["config"]["prevResult"]
    node.down(plugin, pod, network)


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
    node.down(plugin, pod, network)


def test_routes_of_both_families_are_found(node: TestNode) -> None:
    """So are those that the ptp plugin made."""
    ptp = {**node.bridge(ipMasq=True), "type": "ptp"}
    ptp["ipam"]["ranges"].append([{"subnet": "fd99::/64"}])
    ptp["ipam"]["routes"].append({"dst": "::/0"})
    node.configure(ptp)
    plugin, pod, network = node.up()
    for _ in range(3):
        launch(node, plugin, pod, network)
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    node.down(plugin, pod, network)


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
    plugin, pod, network = node.up()
    for _ in range(2):
        launch(node, plugin, pod, network)
    assert [call["command"] for call in node.calls()] == ["ADD"]
    node.down(plugin, pod, network)


@pytest.mark.parametrize("reason", ["later", "missing"])
def test_a_check_that_cannot_be_made_keeps_no_vm_from_its_start(
    node: TestNode, reason: str
) -> None:
    """A plugin that is missing, or says to try again later, has found nothing wrong."""
    later = {"print": {"cniVersion": "1.0.0", "code": 11, "msg": "starting"}, "exit": 1}
    node.configure(node.bridge(), node.fake(CHECK=later))
    plugin, pod, network = node.up()
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
    node.down(plugin, pod, network)


@pytest.mark.parametrize("then", ["launch", "teardown"])
def test_a_manager_killed_during_a_check_leaves_what_the_next_one_makes_good(
    node: TestNode, then: str
) -> None:
    """The veth has its addresses back then; the next start hands them over, and DEL finds them."""
    go = node.root / "go"
    node.configure(node.bridge(ipMasq=True), node.fake(CHECK={"run": f"test -e {go} || sleep 30"}))
    plugin, pod, network = node.up()
    launch(node, plugin, pod, network)
    node.end(plugin)
    (node.root / "pod").write_bytes(pickle.dumps((pod, network)))
    argv = [sys.executable, "-c", _LAUNCH_AGAIN, str(node.root)]
    manager = subprocess.Popen(argv, cwd=Path(__file__).parents[3])
    until(lambda: node.calls()[-1]["command"] == "CHECK" or manager.poll() is not None)
    assert manager.poll() is None
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
    node.down(plugin, pod, network)


def _addresses_of_eth0() -> tuple[str, ...]:
    (eth0,) = (link for link in shown() if link.name == "eth0")
    return tuple(address for address in eth0.addresses if ":" not in address)
