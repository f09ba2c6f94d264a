"""What guests get of CNI networks that are out of the ordinary."""

import subprocess

from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.model.network import Route
from virtlet.model.pod import DnsConfig

CALICO = """
ip link add eth0 type veth peer name cali0
ip link set cali0 netns {node}
ip link set eth0 up
ip address add 10.99.0.77/32 dev eth0
ip route add 169.254.1.1 dev eth0 scope link
ip route add default via 169.254.1.1 dev eth0
"""
"""What Calico's plugin does to the pod's namespace; its result names no route."""


def calico(node: TestNode) -> dict[str, object]:
    """A plugin that leaves the pod as Calico's does."""
    setup = CALICO.format(node=f"/proc/{node.holder()}/ns/net")
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cali0"}, {"name": "eth0", "sandbox": "/var/run/netns/pod"}],
        "ips": [{"address": "10.99.0.77/32", "interface": 1}],
    }
    delete = {"run": "ip link delete eth0 || true"}
    return node.fake(ADD={"run": setup, "print": result}, DEL=delete)


def bring_up_calico_host_side() -> None:
    """Calico's agent: the route to the pod, and proxy ARP for every address."""
    commands = (
        "ip link set cali0 up && ip address add 192.0.2.1/32 dev lo && "
        "ip route add 10.99.0.77 dev cali0 && echo 1 > /proc/sys/net/ipv4/conf/cali0/proxy_arp && "
        "echo 1 > /proc/sys/net/ipv4/ip_forward && ip route add default dev lo"
    )
    subprocess.run(["sh", "-c", commands], check=True)


def test_calico_subnet_is_widened(node: TestNode) -> None:
    """A guest in Calico's network gets a plain subnet and gateway, and reaches the world."""
    node.configure(calico(node))
    plugin, pod, network = node.up()
    bring_up_calico_host_side()
    (interface,) = network.nics
    assert interface.addresses == ("10.99.0.77/24",)
    assert interface.routes == (Route(destination="0.0.0.0/0", gateway="10.99.0.1"),)
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert (lease["mask"], lease["router"]) == ("24", "10.99.0.1")
        assert guest.reaches("192.0.2.1")
    node.down(plugin, pod, network)


def test_calico_subnet_size_32_leaves_the_dummy_gateway(node: TestNode) -> None:
    """With size 32 the guest gets Calico's own /32, and a route to its gateway on the link."""
    node.calico_subnet_size = 32
    node.configure(calico(node))
    plugin, pod, network = node.up()
    bring_up_calico_host_side()
    (interface,) = network.nics
    assert interface.addresses == ("10.99.0.77/32",)
    assert interface.routes == (
        Route(destination="169.254.1.1/32"),
        Route(destination="0.0.0.0/0", gateway="169.254.1.1"),
    )
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert lease["staticroutes"] == "169.254.1.1/32 0.0.0.0 0.0.0.0/0 169.254.1.1"
        assert guest.reaches("192.0.2.1")
    node.down(plugin, pod, network)


def test_neighbours_of_ptp_are_reached_by_the_gateway(node: TestNode) -> None:
    """With ptp the pod's subnet is not on the link; guests of it meet all the same."""
    node.configure({**node.bridge(), "type": "ptp"})
    plugin = node.plugin()
    pods = [node.pod(), node.pod()]
    networks = [set_up(plugin, pod) for pod in pods]
    (interface,) = networks[0].nics
    assert interface.addresses == ("10.99.0.2/32",)
    assert Route(destination="10.99.0.1/32") in interface.routes
    assert Route(destination="10.99.0.0/24", gateway="10.99.0.1") in interface.routes
    subprocess.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
    with node.guest(networks[0]) as one, node.guest(networks[1]) as other:
        assert one.dhcp()
        assert other.dhcp()
        assert one.reaches("10.99.0.3")
    for pod, network in zip(pods, networks, strict=True):
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_dual_stack(node: TestNode) -> None:
    """With IPv6 in the result the guest gets its address by DHCPv6 and a default route by RA."""
    bridge = node.bridge()
    bridge["ipam"]["ranges"].append([{"subnet": "fd99::/64"}])
    bridge["ipam"]["routes"].append({"dst": "::/0"})
    node.configure(bridge)
    subprocess.run(["ip", "address", "add", "fd77::1/128", "dev", "lo"], check=True)
    plugin = node.plugin()
    pod = node.pod(dns=DnsConfig(servers=("10.96.0.10", "fd96::10")))
    network = set_up(plugin, pod)
    assert network.nics[0].addresses == ("10.99.0.2/24", "fd99::2/64")
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert lease["dns"] == "10.96.0.10"
        lease6 = guest.dhcp6()
        assert lease6 is not None
        assert lease6["ipv6"] == "fd99:0000:0000:0000:0000:0000:0000:0002"
        assert lease6["dns"] == "fd96:0000:0000:0000:0000:0000:0000:0010"
        assert guest.reaches("fd77::1")
        assert guest.reaches("fd99::1")
    node.down(plugin, pod, network)


def test_more_interfaces_than_the_result_tells(node: TestNode) -> None:
    """A veth that a plugin adds without a word, as Multus does, becomes a NIC as well."""
    add = (
        "ip link add net1 type veth peer name far1; ip link set far1 up; ip link set net1 up; "
        f"ip link set far1 netns /proc/{node.holder()}/ns/net; "
        "ip address add 10.98.0.5/16 dev net1; "
        "ip route add 10.97.0.0/16 via 10.98.0.1 dev net1 metric 7"
    )
    delete = {"run": "ip link delete net1 || true"}
    node.configure(node.bridge(), node.fake(ADD={"run": add}, DEL=delete))
    plugin, pod, network = node.up()
    subprocess.run(["ip", "address", "add", "10.98.0.1/16", "dev", "far1"], check=True)
    subprocess.run(["ip", "link", "set", "far1", "up"], check=True)
    assert [i.name for i in network.nics] == ["eth0", "net1"]
    assert network.nics[1].routes == (
        Route(destination="10.97.0.0/16", gateway="10.98.0.1", metric=7),
    )
    with node.guest(network, 0) as first, node.guest(network, 1) as second:
        one, two = first.dhcp(), second.dhcp()
        assert one is not None
        assert two is not None
        assert (one["ip"], two["ip"]) == ("10.99.0.2", "10.98.0.5")
        assert "router" not in two
        assert second.reaches("10.98.0.1")
    node.down(plugin, pod, network)
