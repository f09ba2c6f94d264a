"""Networks that change under a running guest, that have one family, or that are closed."""

import subprocess
from typing import Any

import pytest

from tests.plugins.network_cni.conftest import TestNode, gets_ipv6, set_up
from tests.plugins.network_cni.shapes import SHAPES
from virtlet.host.links import Links

ATTACHMENTS = ("bridge", "redirect")


def attached(attachment: str) -> dict[str, str]:
    return {"VirtletNicAttachment": attachment}


def shell(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_link_that_goes_down_and_comes_carries_the_guest_again(
    node: TestNode, attachment: str
) -> None:
    node.configure(node.bridge())
    plugin, pod, network = node.up(annotations=attached(attachment))
    (far,) = node.links() - {"cni0"}
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
        with Links() as net:
            net.set(far, up=False)
            assert not guest.reaches("10.99.0.1")
            net.set(far, up=True)
        assert any(guest.reaches("10.99.0.1") for _ in range(10))
        assert guest.dhcp()
    node.down(plugin, pod, network)


def only_ipv6(node: TestNode) -> dict[str, Any]:
    bridge = node.bridge()
    bridge["ipam"]["ranges"] = [[{"subnet": "fd99::/64"}]]
    bridge["ipam"]["routes"] = [{"dst": "::/0"}]
    return bridge


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_network_of_ipv6_alone(node: TestNode, attachment: str) -> None:
    """The guest is given no IPv4 address, and reaches its gateway, another guest and the node."""
    node.configure(only_ipv6(node))
    shell("ip address add fd77::1/128 dev lo")
    plugin = node.plugin()
    pods = [node.pod(annotations=attached(attachment)) for _ in range(2)]
    networks = [set_up(plugin, pod) for pod in pods]
    assert networks[0].nics[0].addresses == ("fd99::2/64",)
    with node.guest(networks[0]) as one, node.guest(networks[1]) as two:
        assert one.dhcp() is None
        assert gets_ipv6(one)
        assert gets_ipv6(two)
        wanted = ("fd99::1", "fd99::3", "fd77::1")
        assert [address for address in wanted if not one.reaches(address)] == []
    for pod, network in zip(pods, networks, strict=True):
        for _ in range(2):
            plugin.networks.check(pod, network)
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_rules_on_the_nodes_end_of_the_veth_hold_for_the_guest(
    node: TestNode, attachment: str
) -> None:
    """As Calico's policies are made: by the name of that end, in both directions."""
    plugin, made = node.plugin(), []
    for number in (2, 3):
        node.configure(SHAPES["calico"].plugin(node, number))
        pod = node.pod(annotations=attached(attachment))
        made.append((pod, set_up(plugin, pod)))
    shell("sysctl -qw net.ipv4.ip_forward=1; ip address add 192.0.2.1/32 dev lo")
    shell("ip route add default dev lo")  # proxy ARP answers for what the node has a route to
    (_, one), (_, other) = made
    with node.guest(one) as guest, node.guest(other) as neighbour:
        assert guest.dhcp()
        assert neighbour.dhcp()
        assert guest.reaches("10.99.0.3")
        for rule in ("FORWARD -i host2", "FORWARD -o host2"):
            shell(f"iptables -A {rule} -j DROP")
            assert not guest.reaches("10.99.0.3")
            assert guest.reaches("192.0.2.1")
            shell(f"iptables -D {rule} -j DROP")
        shell("iptables -A INPUT -i host2 -j DROP")
        assert not guest.reaches("192.0.2.1")
        shell("iptables -D INPUT -i host2 -j DROP")
        assert guest.reaches("10.99.0.3")
    for pod, network in made:
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []
