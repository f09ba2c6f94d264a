"""The shapes in which well-known CNI plugins leave a pod: their results, and both ends of the veth.

Each is what the plugin does and what its agent on the node adds, in shell commands that a fake
plugin runs in the pod's namespace. NODE is the node's.
"""

from typing import Any

from attrs import frozen

from tests.plugins.network_cni.conftest import TestNode
from virtlet.model.network import Route

DEFAULT, DEFAULT6 = "0.0.0.0/0", "::/0"

_PAIR = """
ip link add eth0 mtu {mtu} type veth peer name host{n}
ip link set host{n} mtu {mtu} netns {node}
ip link set eth0 up
"""
_ROUTED = """
{on_node} ip link set host{n} address {mac} up
{on_node} ip route add 10.99.0.{n} dev host{n}
{on_node} ip -6 route add fd99::{n} dev host{n}
ip address add 10.99.0.{n}/32 dev eth0
ip address add fd99::{n}/128 dev eth0 nodad
"""
_BY_GATEWAYS = """
ip route add {gateway} dev eth0 scope link
ip route add default via {gateway} dev eth0 {more}
ip -6 route add {gateway6} dev eth0
ip -6 route add default via {gateway6} dev eth0 {more}
"""
_PROXY = """
{on_node} sysctl -qw net.ipv4.conf.host{n}.proxy_arp=1 net.ipv6.conf.host{n}.proxy_ndp=1
"""


@frozen
class Shape:
    """How a plugin leaves the pod with the addresses 10.99.0.N and fd99::N."""

    commands: str
    addresses: tuple[str, str]
    routes: tuple[Route, ...]
    """The guest's."""
    gateway: str = ""
    gateway6: str = ""
    mtu: int = 1500
    guest_mtu: int = 1500
    mac: str = "ee:ee:ee:ee:ee:ee"
    """Of the node's end."""
    more: str = ""
    result: tuple[dict[str, Any], ...] = ()
    """More interfaces of the result."""

    def plugin(self, node: TestNode, number: int) -> dict[str, Any]:
        """The configuration of a plugin that leaves a pod so."""
        namespace = f"/proc/{node.holder()}/ns/net"
        values = {
            "n": number,
            "node": namespace,
            "on_node": f"nsenter --net={namespace}",
            "gateway": self.gateway,
            "gateway6": self.gateway6,
            "mtu": self.mtu,
            "mac": self.mac,
            "more": self.more,
        }
        interfaces = [
            {"name": f"host{number}"},
            {"name": "eth0", "sandbox": "/var/run/netns/pod"},
            *self.result,
        ]
        addresses = [a.format(n=number) for a in self.addresses]
        result = {
            "cniVersion": "1.0.0",
            "interfaces": interfaces,
            "ips": [{"address": address, "interface": 1} for address in addresses],
        }
        return node.fake(
            ADD={"run": self.commands.format(**values), "print": result},
            DEL={"run": "ip link delete eth0 || true"},
        )


SHAPES = {
    "calico": Shape(
        commands=_PAIR + _ROUTED + _PROXY + _BY_GATEWAYS,
        gateway="169.254.1.1",
        gateway6="fe80::ecee:eeff:feee:eeee",
        addresses=("10.99.0.{n}/32", "fd99::{n}/128"),
        routes=(
            Route(destination=DEFAULT, gateway="10.99.0.1"),
            Route(destination="fe80::ecee:eeff:feee:eeee/128"),
            Route(destination=DEFAULT6, gateway="fe80::ecee:eeff:feee:eeee"),
        ),
    ),
    "cilium": Shape(
        # Its programs answer for the router, whose address is on another interface of the node.
        commands=_PAIR
        + _ROUTED
        + "{on_node} sysctl -qw net.ipv6.conf.host{n}.proxy_ndp=1\n"
        + "{on_node} ip address replace {gateway}/32 dev lo\n"
        + "{on_node} ip -6 address replace {gateway6}/128 dev lo\n"
        + "{on_node} ip -6 neighbour add proxy {gateway6} dev host{n}\n"
        + _BY_GATEWAYS,
        gateway="10.99.0.200",
        gateway6="fd99::200",
        more="mtu 1450",
        guest_mtu=1450,
        addresses=("10.99.0.{n}/32", "fd99::{n}/128"),
        routes=(
            Route(destination="10.99.0.200/32"),
            Route(destination="fd99::200/128"),
            Route(destination=DEFAULT, gateway="10.99.0.200"),
            Route(destination=DEFAULT6, gateway="fd99::200"),
        ),
    ),
    "aws": Shape(
        # Nobody answers for the gateways: the pod is told the MAC address of the node's end.
        commands=_PAIR
        + _ROUTED
        + "{on_node} sysctl -qw net.ipv4.conf.host{n}.arp_ignore=8\n"
        + _BY_GATEWAYS
        + "ip neighbour add {gateway} lladdr {mac} dev eth0 nud permanent\n"
        + "ip -6 neighbour add {gateway6} lladdr {mac} dev eth0 nud permanent\n",
        gateway="169.254.1.1",
        gateway6="fe80::1",
        mac="06:11:22:33:44:55",
        mtu=9001,
        guest_mtu=9001,
        addresses=("10.99.0.{n}/32", "fd99::{n}/128"),
        routes=(
            Route(destination="169.254.1.1/32"),
            Route(destination="fe80::1/128"),
            Route(destination=DEFAULT, gateway="169.254.1.1"),
            Route(destination=DEFAULT6, gateway="fe80::1"),
        ),
        result=({"name": "dumm0a1b2c3d4e5", "mac": "0", "sandbox": "0"},),
    ),
    "ovn-kubernetes": Shape(
        # A bridge in place of the logical switch and its router.
        commands=_PAIR
        + """
{on_node} sh -c 'ip link show ovn || ip link add ovn address {mac} mtu {mtu} type bridge'
{on_node} ip link set ovn up
{on_node} ip address replace {gateway}/23 dev ovn
{on_node} ip -6 address replace {gateway6}/64 dev ovn nodad
{on_node} ip link set host{n} master ovn up
ip address add 10.99.0.{n}/23 dev eth0
ip address add fd99::{n}/64 dev eth0 nodad
ip route add default via {gateway} dev eth0
ip route add 10.96.0.0/16 via {gateway} dev eth0
ip route add 100.64.0.0/16 via {gateway} dev eth0
ip -6 route add default via {gateway6} dev eth0
ip -6 route add fd98::/64 via {gateway6} dev eth0
""",
        gateway="10.99.0.1",
        gateway6="fd99::1",
        mac="0a:58:0a:63:00:01",
        mtu=1400,
        guest_mtu=1400,
        addresses=("10.99.0.{n}/23", "fd99::{n}/64"),
        routes=(
            Route(destination=DEFAULT, gateway="10.99.0.1"),
            Route(destination="10.96.0.0/16", gateway="10.99.0.1"),
            Route(destination="100.64.0.0/16", gateway="10.99.0.1"),
            Route(destination="fd98::/64", gateway="fd99::1"),
            Route(destination=DEFAULT6, gateway="fd99::1"),
        ),
    ),
}


def flannel(node: TestNode) -> dict[str, Any]:
    """What Flannel delegates to, and the routes that it adds."""
    bridge = node.bridge(mtu=1450, hairpinMode=True, forceAddress=False, isDefaultGateway=True)
    bridge["ipam"]["ranges"].append([{"subnet": "fd99::/64"}])
    bridge["ipam"]["routes"] = [{"dst": "10.96.0.0/12"}, {"dst": "fd96::/112"}]
    return bridge
