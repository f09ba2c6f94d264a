"""Pods of several networks: a meta-plugin over real plugins, whose result tells of the first."""

import json
import subprocess

import pytest

from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.errors import FailedPrecondition, PodBroken
from virtlet.host import netns
from virtlet.host.links import Link, Links
from virtlet.model.network import Network, Route
from virtlet.plugins.network_cni.cni_result import parse
from virtlet.plugins.network_cni.guest_view import NETWORKS, Sandbox, links, requested


def bridged(node: TestNode, name: str, subnet: str, **more: object) -> dict[str, object]:
    """A network on a bridge of its own."""
    return node.bridge(bridge=name, ipam=node.ipam(subnet), **more)


def without_bridges() -> None:
    """Remove what the bridge plugin leaves on the node for the next pod."""
    with Links() as net:
        for name in ("br1", "br2", "br3"):
            net.delete(name)


def test_networks_beside_the_result_become_nics(node: TestNode) -> None:
    """Each has its address, routes and MTU by the kernel, a DHCP server, and a way to the node."""
    node.configure(
        node.meta(
            node.bridge(),
            bridged(node, "br1", "10.98.0.0/24", mtu=1300),
            {"type": "ptp", "ipam": node.ipam("10.97.0.0/24", "10.96.0.0/16")},
        )
    )
    plugin, pod, network = node.up()
    status = json.loads((node.root / "status.json").read_text())
    # What Multus tells of the pod is what the guest has.
    assert [(s["interface"], s["mac"], s["ips"]) for s in status] == [
        (nic.name, nic.mac, [a.split("/")[0] for a in nic.addresses]) for nic in network.nics
    ]
    assert [s.get("default", False) for s in status] == [True, False, False]
    first, second, third = network.nics
    assert (first.name, second.name, third.name) == ("eth0", "net1", "net2")
    assert (first.mtu, second.mtu) == (1500, 1300)
    assert Route(destination="10.96.0.0/16", gateway="10.97.0.1") in third.routes
    reached = ("10.99.0.1", "10.98.0.1", "10.97.0.1")
    for number, (nic, gateway) in enumerate(zip(network.nics, reached, strict=True)):
        with node.guest(network, number) as guest:
            lease = guest.dhcp()
            assert lease is not None
            assert lease["ip"] == nic.addresses[0].split("/")[0]
            assert lease["mtu"] == str(nic.mtu)
            assert guest.reaches(gateway)
    plugin.virtlet_teardown_network(pod, network)
    without_bridges()
    assert node.leftovers() == []


def test_nics_come_in_the_order_of_the_annotation(node: TestNode) -> None:
    """Whatever numbers the kernel gave them; one that nobody names comes last, by its name."""
    node.configure(
        node.meta(
            node.bridge(),
            {**bridged(node, "br1", "10.98.0.0/24"), "ifname": "net10"},
            {**bridged(node, "br3", "10.95.0.0/24"), "ifname": "net2"},
            {**bridged(node, "br2", "10.97.0.0/24"), "ifname": "store"},
        )
    )
    asked = [{"name": "storage", "interface": "store"}]
    plugin, pod, network = node.up(annotations={NETWORKS.name: json.dumps(asked)})
    assert [nic.name for nic in network.nics] == ["eth0", "store", "net2", "net10"]
    plugin.virtlet_teardown_network(pod, network)
    without_bridges()
    assert node.leftovers() == []


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        ("one", ("net1",)),
        ("one, other/two@data", ("net1", "data")),
        ('[{"name": "one", "interface": "data"}, {"name": "two"}]', ("data", "net2")),
        ('["one", 7, null, {"interface": 3}]', ("net1", "net2", "net3", "net4")),
        ("[{", ()),
        pytest.param("[" * 100_000, (), id="nested too deep"),
    ],
)
def test_interfaces_of_an_annotation(annotation: str, names: tuple[str, ...]) -> None:
    """Both forms are read as Multus does; nothing is taken of one that cannot be read."""
    assert requested(annotation) == names


def test_a_dummy_interface_is_no_nic() -> None:
    """Its addresses are for programs of the pod itself, and lead nowhere."""
    eth0, dummy = (
        Link(
            name=name, kind=kind, mac=mac, mtu=1500, flags=frozenset(), addresses=("192.0.2.1/32",)
        )
        for name, kind, mac in (
            ("eth0", "veth", "02:00:00:00:00:01"),
            ("local", "dummy", "02:00:00:00:00:02"),
        )
    )
    result = parse({"interfaces": [{"name": "eth0", "sandbox": "/pod"}]}, "1.0.0")
    assert links(Sandbox((dummy, eth0), ()), result) == (eth0,)


def test_a_name_that_would_end_a_firewall_rules_is_refused() -> None:
    """A pod's annotation may name its interfaces."""
    named = Link(
        name='"accept#',
        kind="veth",
        mac="02:00:00:00:00:01",
        mtu=1500,
        flags=frozenset(),
        addresses=(),
    )
    result = parse({"interfaces": [{"name": '"accept#', "sandbox": "/pod"}]}, "1.0.0")
    with pytest.raises(FailedPrecondition, match="no firewall rule can hold"):
        links(Sandbox((named,), ()), result)


def test_a_network_that_fails_takes_the_others_back(node: TestNode) -> None:
    """The first delegates of a pod have succeeded, and their addresses are given back."""
    broken = node.fake(ADD={"text": '{"code": 7, "msg": "no such uplink"}', "exit": 1})
    node.configure(node.meta(node.bridge(), bridged(node, "br1", "10.98.0.0/24"), broken))
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(Exception, match="no such uplink"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)
    without_bridges()
    assert node.leftovers() == []


def test_check_finds_damage_in_a_network_beside_the_result(node: TestNode) -> None:
    """CHECK finds every interface as its plugin made it, and names what is missing later."""
    node.configure(node.meta(node.bridge(), bridged(node, "br1", "10.98.0.0/24")))
    plugin, pod, network = node.up()
    for _ in range(3):
        plugin.networks.check(pod, network)
    with node.guest(network, 1) as guest:
        assert guest.dhcp() is not None
        assert guest.reaches("10.98.0.1")
    with Links() as net:
        net.delete("br1")
    with pytest.raises(PodBroken, match="failed to CHECK"):
        plugin.networks.check(pod, network)
    plugin.virtlet_teardown_network(pod, network)
    without_bridges()
    assert node.leftovers() == []


def in_the_pod(network: Network, *command: str) -> None:
    """Run a command in a pod's namespace."""
    assert network.netns is not None
    netns.inside(network.netns, lambda: subprocess.run(command, check=True))


def test_an_interface_that_vanishes_before_the_start_is_named(node: TestNode) -> None:
    """Nothing of the pod is changed, and all of it is undone."""
    node.configure(node.meta(node.bridge(), bridged(node, "br1", "10.98.0.0/24")))
    plugin, pod = node.plugin(), node.pod()
    network = plugin.virtlet_setup_network(pod)
    in_the_pod(network, "ip", "link", "delete", "net1")
    with pytest.raises(FailedPrecondition, match="interface net1 has gone from the pod since"):
        plugin.virtlet_serve_network(pod, network)
    plugin.virtlet_teardown_network(pod, network)
    without_bridges()
    assert node.leftovers() == []


def test_two_networks_with_one_mac_are_refused_by_name(node: TestNode) -> None:
    """A guest could not tell its NICs apart."""
    add = "ip link set eth0 address 02:00:00:00:00:07; ip link set net1 address 02:00:00:00:00:07"
    node.configure(
        node.meta(node.bridge(), bridged(node, "br1", "10.98.0.0/24")), node.fake(ADD={"run": add})
    )
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(FailedPrecondition, match="eth0 and net1 with one MAC address, 02:"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)
    without_bridges()
    assert node.leftovers() == []
