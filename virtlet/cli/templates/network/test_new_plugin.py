"""The plugin without a VM and with one, on a network of the test's own."""

from pathlib import Path

import pytest
from new_plugin import Plugin

from virtlet.api import Links, open_tap
from virtlet.testing import BootGuest, check_plugin, configured, make_pod, plugged


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


@pytest.mark.usefixtures("own_network")
def test_the_guest_reaches_the_node_and_nothing_is_left(tmp_path: Path) -> None:
    plugin, pod = configured(Plugin(), tmp_path), make_pod()
    network = plugin.virtlet_setup_network(pod)
    assert network is not None
    (nic,) = network.nics
    with plugged(tmp_path / "guest", open_tap(nic.device), nic.mac) as guest:
        guest.run("ip", "address", "add", nic.addresses[0], "dev", "eth0")
        assert guest.reaches(nic.routes[0].gateway)
    plugin.virtlet_teardown_network(pod, network)
    plugin.virtlet_teardown_network(pod, None)
    with Links() as links:
        assert [link.name for link in links.show()] == ["lo"]


def test_a_guest_has_the_address(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    assert guest.address == "10.79.0.2"
    guest.wait_for_console("login:")
