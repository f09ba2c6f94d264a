"""The example that replaces network set-up by a routed tap."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.guest import plugged
from tests.plugins.network_cni.conftest import TestNode
from tests.plugins.network_cni.test_launch import close, emulator_says, machine
from virtlet.errors import ResourceExhausted
from virtlet.host.taps import open_tap
from virtlet.model.option import Settings
from virtlet.plugins.libvirt_qemu.nics import launch_part

SOURCE = Path(__file__).parents[3] / "examples" / "plugin-network" / "virtlet_example_network.py"


def example(node: TestNode, subnet: str) -> Any:
    spec = importlib.util.spec_from_file_location("virtlet_example_network", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin = module.Plugin()
    plugin.virtlet_configure(
        Settings(values={"exampleSubnet": module.SUBNET.kind.parse(subnet)}), node.node()
    )
    return plugin


def test_node_and_guest_reach_each_other(node: TestNode) -> None:
    """The guest is on the node's own namespace's tap, with the address it is told."""
    plugin = example(node, "10.78.0.0/16")
    network = plugin.virtlet_setup_network(node.pod())
    pod = node.pods[-1]
    (nic,) = network.nics
    assert nic.addresses == ("10.78.0.2/30",)
    with plugged(node.root / "guest", open_tap(nic.device), nic.mac) as guest:
        guest.run("ip", "address", "add", nic.addresses[0], "dev", "eth0")
        assert guest.reaches("10.78.0.1")
        ping = ("busybox", "ping", "-c", "1", "-W", "2", "10.78.0.2")
        assert subprocess.run(ping, capture_output=True).returncode == 0
    plugin.virtlet_teardown_network(pod, network)
    plugin.virtlet_teardown_network(pod, None)
    assert node.links() == set()


def test_emulator_takes_the_tap(node: TestNode) -> None:
    """The default hypervisor connects it; the built-in network keeps out of it."""
    plugin = example(node, "10.78.0.0/16")
    network = plugin.virtlet_setup_network(node.pod())
    made = machine(node.root, network, pod=node.pods[-1])
    assert node.plugin().virtlet_launch(made) is None
    part = launch_part(made)
    assert network.nics[0].mac in emulator_says(part, "q35", "info network")
    close(part)
    plugin.virtlet_teardown_network(node.pods[-1], network)


def test_subnet_is_used_up(node: TestNode) -> None:
    """Every pod has a /30 of its own; one that is given back is given again."""
    plugin = example(node, "10.78.0.0/29")
    pods = [node.pod(), node.pod(), node.pod()]
    networks = [plugin.virtlet_setup_network(pod) for pod in pods[:2]]
    assert [network.addresses for network in networks] == [("10.78.0.2",), ("10.78.0.6",)]
    with pytest.raises(ResourceExhausted, match="has no /30 left"):
        plugin.virtlet_setup_network(pods[2])
    plugin.virtlet_teardown_network(pods[0], None)
    assert plugin.virtlet_setup_network(pods[2]).addresses == ("10.78.0.2",)
    for pod in pods:
        plugin.virtlet_teardown_network(pod, None)
    assert node.links() == set()
