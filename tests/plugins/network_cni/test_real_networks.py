"""Guests in networks of the shapes that Calico, Cilium, Flannel, AWS and OVN-Kubernetes leave."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.network_cni.conftest import TestNode, gets_ipv6, set_up
from tests.plugins.network_cni.shapes import SHAPES, Shape, flannel
from virtlet.host import netns
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.plugins.network_cni.plugin import Plugin
from virtlet.testing.plugged import Plugged

NODE, OUTSIDE, SERVICE = "192.0.2.1", "198.51.100.9", "10.96.0.10"
NODE6, OUTSIDE6, SERVICE6 = "2001:db8:1::1", "2001:db8:2::9", "fd96::10"

UPLINK = f"""
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip address add {NODE}/32 dev lo
ip address add {NODE6}/128 dev lo
ip address add 198.51.100.1/24 dev up0
ip address add 2001:db8:2::1/64 dev up0 nodad
ip link set up0 up
ip route add default via {OUTSIDE}
ip -6 route add default via {OUTSIDE6}
"""
OUTER = f"""
ip address add {OUTSIDE}/24 dev out0
ip address add {OUTSIDE6}/64 dev out0 nodad
ip link set out0 up
ip route add default via 198.51.100.1
ip -6 route add default via 2001:db8:2::1
"""


def shell(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def world(node: TestNode, tmp_path: Path) -> Iterator[TestNode]:
    """A node with an address of its own, and a host outside that it forwards to."""
    outside = tmp_path / "outside.netns"
    netns.create(outside)
    try:
        shell(f"ip link add up0 type veth peer name out0 && ip link set out0 netns {outside}")
        netns.inside(outside, lambda: shell(OUTER))
        shell(UPLINK)
        yield node
    finally:
        netns.delete(outside)


def two_pods(
    node: TestNode, shape: Shape | None, attachment: str
) -> tuple[Plugin, list[tuple[Pod, Network]]]:
    """Pods .2 and .3; by Debian's bridge plugin where there is no shape."""
    plugin, made = node.plugin(), []
    for number in (2, 3):
        node.configure(flannel(node) if shape is None else shape.plugin(node, number))
        pod = node.pod(annotations={"VirtletNicAttachment": attachment})
        made.append((pod, set_up(plugin, pod)))
    return plugin, made


def serve_by(address: str, address6: str) -> None:
    """What kube-proxy does for a Service with one endpoint."""
    shell(
        f"iptables -t nat -A PREROUTING -d {SERVICE} -j DNAT --to-destination {address}; "
        f"ip6tables -t nat -A PREROUTING -d {SERVICE6} -j DNAT --to-destination {address6}"
    )


def configured(guest: Plugged, mtu: int) -> None:
    """Have a guest ask for all that it is told, in both families."""
    lease = guest.dhcp()
    assert lease is not None
    assert lease["mtu"] == str(mtu)
    assert gets_ipv6(guest)


@pytest.mark.parametrize(
    ("name", "attachment"),
    [
        *((name, "bridge") for name in ("flannel", *SHAPES)),
        *((name, "redirect") for name in ("flannel", "calico", "ovn-kubernetes")),
    ],
)
def test_a_guest_reaches_node_pod_service_and_outside(
    world: TestNode, name: str, attachment: str
) -> None:
    """In both families, with what DHCP and router advertisements tell; and it is reached."""
    shape = SHAPES.get(name)
    mtu = 1450 if shape is None else shape.guest_mtu
    plugin, made = two_pods(world, shape, attachment)
    (_, network), (_, other) = made
    if shape is not None:
        assert set(network.nics[0].routes) == set(shape.routes)
    assert [nic.mtu for nic in network.nics] == [mtu]
    serve_by("10.99.0.3", "fd99::3")
    with world.guest(network) as guest, world.guest(other) as neighbour:
        configured(guest, mtu)
        configured(neighbour, mtu)
        wanted = (NODE, "10.99.0.3", SERVICE, OUTSIDE, NODE6, "fd99::3", SERVICE6, OUTSIDE6)
        assert [address for address in wanted if not guest.reaches(address)] == []
    shell("iptables -t nat -F PREROUTING; ip6tables -t nat -F PREROUTING")
    for each, its in made:
        for _ in range(2):  # CNI's plugins are asked from the second on
            plugin.networks.check(each, its)
        plugin.virtlet_teardown_network(each, its)
    shell("ip link delete up0; ip link delete ovn || true")
    assert world.leftovers() == []
