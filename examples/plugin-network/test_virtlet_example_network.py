"""A routed tap for every pod, with the plugin on a network of its own."""

import subprocess
from pathlib import Path

import pytest
from virtlet_example_network import Plugin

from virtlet.api import Links, ResourceExhausted, open_tap
from virtlet.testing import BootGuest, check_plugin, configured, make_pod, plugged

pytestmark = pytest.mark.usefixtures("own_network")


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_node_and_guest_reach_each_other(tmp_path: Path) -> None:
    """The guest is on the tap, with the address that it is told."""
    plugin, pod = configured(Plugin(), tmp_path), make_pod()
    network = plugin.virtlet_setup_network(pod)
    (nic,) = network.nics
    assert nic.addresses == ("10.78.0.2/30",)
    with plugged(tmp_path / "guest", open_tap(nic.device), nic.mac) as guest:
        guest.run("ip", "address", "add", nic.addresses[0], "dev", "eth0")
        assert guest.reaches("10.78.0.1")
        ping = ("busybox", "ping", "-c", "1", "-W", "2", "10.78.0.2")
        assert subprocess.run(ping, capture_output=True).returncode == 0
    plugin.virtlet_teardown_network(pod, network)
    plugin.virtlet_teardown_network(pod, None)
    assert interfaces() == ["lo"]


def test_subnet_is_used_up(tmp_path: Path) -> None:
    """Every pod has a /30 of its own; one that is given back is given again."""
    plugin = configured(Plugin(), tmp_path, exampleSubnet="10.78.0.0/29")
    pods = [make_pod(id=digit * 32) for digit in "abc"]
    networks = [plugin.virtlet_setup_network(pod) for pod in pods[:2]]
    assert [network.ips for network in networks] == [("10.78.0.2",), ("10.78.0.6",)]
    with pytest.raises(ResourceExhausted, match="has no /30 left"):
        plugin.virtlet_setup_network(pods[2])
    plugin.virtlet_teardown_network(pods[0], None)
    assert plugin.virtlet_setup_network(pods[2]).ips == ("10.78.0.2",)
    for pod in pods:
        plugin.virtlet_teardown_network(pod, None)
    assert interfaces() == ["lo"]


def test_a_guest_has_the_address_that_the_plugin_chose(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    assert guest.address == "10.78.0.2"
    assert "10.78.0.2/30" in guest.exec("ip", "address", "show").stdout


def interfaces() -> list[str]:
    """Names of the interfaces of the test's network."""
    with Links() as links:
        return [link.name for link in links.show()]
