"""How interfaces of a pod become NICs: bridged, or with their frames redirected."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.plugins.network_cni.conftest import TestNode, gets_ipv6, set_up
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.network import Network, Route
from virtlet.model.pod import Profile

REDIRECT = {"VirtletNicAttachment": "redirect"}


def shell(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True)


@pytest.fixture
def uplink(node: TestNode, tmp_path: Path) -> Iterator[TestNode]:
    """A node with an interface `up0` for macvlans; beyond it is the gateway of their network."""
    outside = tmp_path / "outside.netns"
    netns.create(outside)
    try:
        shell(
            f"ip link add up0 mtu 9000 type veth peer name out0 mtu 9000 netns {outside};"
            "ip link set up0 up"
        )
        gateway = (
            "ip address add 10.98.0.1/24 dev out0; ip address add fd98::1/64 dev out0 nodad;"
            "ip address add 10.97.0.1/32 dev lo; ip address add fd97::1/128 dev lo;"
            "ip link set out0 up"
        )
        netns.inside(outside, lambda: shell(gateway))
        yield node
        with Links() as net:
            net.delete("up0")
        assert node.leftovers() == []
    finally:
        netns.delete(outside)


def macvlan(node: TestNode, **more: Any) -> dict[str, Any]:
    """A network of the uplink, in both families."""
    ipam = node.ipam("10.98.0.0/24")
    ipam["ranges"].append([{"subnet": "fd98::/64"}])
    ipam["routes"] = [
        {"dst": "10.97.0.0/16", "gw": "10.98.0.1"},
        {"dst": "fd97::/64", "gw": "fd98::1"},
    ]
    return {"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": ipam, **more}


def test_a_macvlan_beside_the_pods_own_network(uplink: TestNode) -> None:
    """Guests reach each other and the gateway by it, with the address, routes and MTU of it."""
    uplink.configure(uplink.meta(uplink.bridge(), macvlan(uplink, mtu=9000)))
    plugin = uplink.plugin()
    pods = [uplink.pod(), uplink.pod()]
    networks = [set_up(plugin, pod) for pod in pods]
    nic = networks[0].nics[1]
    assert (nic.name, nic.mtu, nic.addresses) == ("net1", 9000, ("10.98.0.2/24", "fd98::2/64"))
    assert Route(destination="10.97.0.0/16", gateway="10.98.0.1") in nic.routes
    with uplink.guest(networks[0], 1) as one, uplink.guest(networks[1], 1) as two:
        for guest in (one, two):
            lease = guest.dhcp()
            assert lease is not None
            assert lease["mtu"] == "9000"
            assert gets_ipv6(guest)
        wanted = ("10.98.0.1", "10.97.0.1", "10.98.0.3", "fd98::1", "fd98::3")
        assert [address for address in wanted if not one.reaches(address)] == []
        whole = ("busybox", "ping", "-c", "1", "-W", "2", "-s", "8972", "10.98.0.1")
        assert one.run(*whole).returncode == 0
    with uplink.guest(networks[0], 0) as first:
        assert first.dhcp()
        assert first.reaches("10.99.0.1")
    for pod, network in zip(pods, networks, strict=True):
        plugin.networks.check(pod, network)
        plugin.networks.check(pod, network)
        plugin.virtlet_teardown_network(pod, network)


def test_a_macvlan_as_the_pods_own_network(uplink: TestNode) -> None:
    """And CHECK does not disturb the guest, as nothing is handed over."""
    own = macvlan(uplink)
    own["ipam"]["routes"] = [{"dst": "10.97.0.0/16"}, {"dst": "::/0"}]
    uplink.configure(own)
    plugin, pod, network = uplink.up()
    with uplink.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.98.0.1")
        plugin.networks._check(pod.id)
        assert guest.reaches("10.97.0.1")
        assert gets_ipv6(guest)
        assert guest.reaches("fd97::1")
    plugin.virtlet_teardown_network(pod, network)


def test_a_macvlan_without_addresses_is_a_nic(uplink: TestNode) -> None:
    """Its guest chooses one for itself, and reaches the network with it."""
    bare = {"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": {}}
    uplink.configure(uplink.meta(uplink.bridge(), bare))
    plugin, pod, network = uplink.up()
    with uplink.guest(network, 1) as guest:
        guest.run("ip", "address", "add", "10.98.0.50/24", "dev", "eth0")
        assert guest.reaches("10.98.0.1")
    plugin.virtlet_teardown_network(pod, network)


def test_a_macvlan_keeps_its_mac_address(uplink: TestNode) -> None:
    uplink.configure(macvlan(uplink))
    plugin, pod = uplink.plugin(), uplink.pod()
    with pytest.raises(FailedPrecondition, match="it is a macvlan, which receives frames to its"):
        set_up(plugin, pod, mac="02:00:00:00:00:09")
    plugin.virtlet_teardown_network(pod, None)


def veth_in_pod(network: Network) -> str:
    """What the pod's namespace says of its veth."""
    assert network.netns is not None
    command = ("ip", "-details", "address", "show", "dev", "eth0")
    return netns.inside(
        network.netns, lambda: subprocess.run(command, capture_output=True, text=True).stdout
    )


@pytest.mark.parametrize("by", ["annotation", "flavor"])
def test_a_veth_is_left_as_cni_made_it_by_choice(node: TestNode, by: str) -> None:
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod(annotations=REDIRECT if by == "annotation" else {})
    if by == "flavor":
        pod = evolve(pod, profile=Profile(flavor={"extras": {"attachment": "redirect"}}))
    network = set_up(plugin, pod)
    shown = veth_in_pod(network)
    assert "10.99.0.2/24" in shown
    assert network.nics[0].mac in shown
    assert "bridge_slave" not in shown
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    plugin.networks.check(pod, network)
    plugin.networks.check(pod, network)
    node.down(plugin, pod, network)


def test_an_attachment_that_there_is_not_is_refused(node: TestNode) -> None:
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod(annotations={"VirtletNicAttachment": "macvtap"})
    with pytest.raises(InvalidArgument, match="VirtletNicAttachment: .*bridge"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)
    pod = evolve(node.pod(), profile=Profile(flavor={"extras": {"attachment": "wire"}}))
    with pytest.raises(FailedPrecondition, match="extras: attachment: .*bridge"):
        set_up(plugin, pod)
    node.down(plugin, pod, None)
