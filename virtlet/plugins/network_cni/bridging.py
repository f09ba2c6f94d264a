"""The way between a pod's veth and its guest's tap, inside the pod's namespace.

For the N-th NIC: veth ─ bridge `vbrN` ─ tap `vtapN`. The guest takes the veth's MAC and addresses,
or others that were chosen for it; the veth gets another MAC and keeps no address. The bridge has a
link-local address of its own, for the DHCP server. No frame passes between the bridge's own stack
and the veth, so that only the guest can reach it.

A NIC that is redirected: the interface keeps MAC address, addresses and routes, and is no port of
the bridge. What it receives is the guest's, and what the guest sends leaves by it, but for what the
bridge serves (`frame_filter`). A macvlan is given frames to its own MAC address only: it cannot be
a bridge's port.

Everything here acts on the namespace of the calling thread.
"""

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import ip_network

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.links import KernelRoute, Link, LinkError, Links, Neighbour, set_sysctl
from virtlet.model.network import Nic, Route
from virtlet.plugins.network_cni.frame_filter import filter_frames, redirect_frames
from virtlet.plugins.network_cni.guest_view import Sandbox

# From <linux/sockios.h> and <linux/ethtool.h>.
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


@frozen
class BridgedNic:
    """One guest NIC and its way to the pod's veth."""

    index: int
    veth: str
    mac: str
    """The veth's own."""
    mtu: int
    addresses: tuple[str, ...]
    """What the veth had, in CIDR form."""
    routes: tuple[KernelRoute, ...]
    """The veth's routes that do not come with its addresses, those on the link first."""
    guest_addresses: tuple[str, ...]
    """The guest's, without prefix lengths."""
    guest_routes6: tuple[Route, ...]
    """The guest's IPv6 routes by a gateway."""
    server: str
    """The bridge's own address."""
    guest_mac: str = ""
    """The guest's; state files of earlier releases lack it."""
    queues: int = 1
    neighbours: tuple[Neighbour, ...] = ()
    """The veth's permanent ones, which the guest is answered for."""
    redirected: bool = False
    """Whether frames pass between interface and tap without the bridge."""

    @property
    def bridge(self) -> str:
        """Name of the bridge."""
        return f"vbr{self.index}"

    @property
    def tap(self) -> str:
        """Name of the tap."""
        return tap(self.index)

    @property
    def bridge_mac(self) -> str:
        """The bridge's own MAC address."""
        return _changed(self.mac, 0x20)

    @property
    def port_mac(self) -> str:
        """The veth's MAC address in the bridge."""
        return _changed(self.mac, 0x10)

    @property
    def guest_address6(self) -> str:
        """The guest's first IPv6 address, or ""."""
        return next((a for a in self.guest_addresses if ":" in a), "")

    @property
    def server6(self) -> str:
        """The bridge's own address beside the guest's IPv6 address.

        dnsmasq serves IPv6 only where it has an address of the same /64. Only the guest sees this
        one. It is made of a MAC address (RFC 4291, appendix A), so that pods hardly ever have it.
        """
        prefix = ip_network(f"{self.guest_address6}/64", strict=False)
        octets = bytes.fromhex(self.bridge_mac.replace(":", ""))
        identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
        return str(prefix[int.from_bytes(identifier, "big")])


def tap(index: int) -> str:
    """Name of a NIC's tap."""
    return f"vtap{index}"


def read_sandbox() -> Sandbox:
    """The links and routes of the namespace now."""
    with Links() as net:
        return Sandbox(net.show(), net.routes(), net.neighbours())


def plan(
    sandbox: Sandbox, guest_nics: Sequence[Nic], taken: Iterable[str], *, redirect: bool = False
) -> tuple[BridgedNic, ...]:
    """Say how the interface of each NIC will be attached, and what is needed to restore it.

    Args:
        sandbox: the namespace before anything is changed.
        guest_nics: the guest's view of it.
        taken: addresses the guest has to reach, which no bridge may have.
        redirect: whether veths are redirected. One with permanent neighbours is not: the bridge
            answers for those.

    Raises:
        FailedPrecondition: a NIC's interface is gone, or the NIC has the MAC address of the bridge
            or of its other port.
    """
    servers = _server_addresses(set(taken))
    veths = {link.name: link for link in sandbox.links}
    # One of hardware that has vfio-pci already never had an interface.
    gone = [nic.name for nic in guest_nics if nic.kind == "tap" and nic.name not in veths]
    if gone:
        raise FailedPrecondition(
            f"interface {', '.join(gone)} has gone from the pod since CNI's ADD: see what removes "
            "it on the node; the pod is made again"
        )
    nics = tuple(
        _planned(index, veths[nic.name], sandbox, nic, next(servers), redirect=redirect)
        for index, nic in enumerate(guest_nics)
        if nic.kind == "tap"
    )
    for nic in nics:
        if veths[nic.veth].kind == "macvlan" and nic.guest_mac != nic.mac:
            raise FailedPrecondition(
                f"NIC {nic.veth} cannot have the MAC address {nic.guest_mac}: it is a macvlan, "
                f"which receives frames to its own only, {nic.mac}"
            )
        if nic.guest_mac in (nic.bridge_mac, nic.port_mac):
            raise FailedPrecondition(
                f"NIC {nic.veth} cannot have the MAC address {nic.guest_mac}, which is that of the "
                "pod's bridge or of its port: choose another"
            )
    return nics


def _planned(
    index: int, veth: Link, sandbox: Sandbox, nic: Nic, server: str, *, redirect: bool
) -> BridgedNic:
    neighbours = tuple(n for n in sandbox.neighbours if n.device == veth.name)
    return BridgedNic(
        index=index,
        veth=veth.name,
        mac=veth.mac,
        mtu=veth.mtu,
        addresses=veth.addresses,
        routes=tuple(restorable(sandbox.routes, veth.name)),
        guest_addresses=tuple(a.split("/")[0] for a in nic.addresses),
        guest_routes6=tuple(r for r in nic.routes if r.gateway and ":" in r.destination),
        server=server,
        guest_mac=nic.mac,
        queues=nic.queues,
        neighbours=neighbours,
        redirected=veth.kind == "macvlan" or (redirect and not neighbours),
    )


def prepare() -> None:
    """Prepare a new namespace for CNI: no duplicate address detection, which takes seconds."""
    for name in ("all", "default"):
        set_sysctl(f"ipv6/conf/{name}/accept_dad", "0")


def connect(nics: Sequence[BridgedNic], *, spoofing: bool = False) -> None:
    """Make bridges and taps, and hand the veths over.

    Args:
        nics: what to connect.
        spoofing: whether guests may send from any address.

    Raises:
        LinkError, CommandError: the kernel refuses; `restore` undoes what was done.
        FailedPrecondition: a program is missing on the node.
    """
    set_sysctl("ipv4/ip_forward", "0")
    # Else frames between veth and guest would pass the pod's iptables and be tracked.
    for family in ("iptables", "ip6tables", "arptables"):
        set_sysctl(f"bridge/bridge-nf-call-{family}", "0")
    set_sysctl("ipv6/conf/default/disable_ipv6", "1")
    # Before there is a port, so that no frame passes unfiltered.
    filter_frames(nics, spoofing=spoofing)
    with Links() as net:
        net.set("lo", up=True)
        for nic in nics:
            net.add_bridge(nic.bridge, mac=nic.bridge_mac, mtu=nic.mtu)
            net.add_tap(nic.tap, multi_queue=nic.queues > 1)
            net.set(nic.tap, mtu=nic.mtu, master=nic.bridge, up=True)
        _hand_over(net, nics)
    redirected = [nic for nic in nics if nic.redirected]
    if redirected:
        redirect_frames(redirected, spoofing=spoofing)
    for nic in nics:
        _checksum_in_software(nic.bridge)


def hand_over(nics: Sequence[BridgedNic]) -> None:
    """Take the veths' addresses away and put them into the bridges.

    Raises:
        LinkError: the kernel refuses; `restore` undoes what was done.
    """
    with Links() as net:
        _hand_over(net, nics)


def restore(nics: Sequence[BridgedNic]) -> None:
    """Give the veths back what they had, as CNI's DEL and CHECK expect to find it.

    The bridge plugin, for one, removes the masquerading only of addresses that it finds on the
    veth. Bridges and taps stay; they go with the namespace. Idempotent.

    Raises:
        LinkError: some of it was not possible; the rest is done.
    """
    refused: list[LinkError] = []

    def attempt(change: Callable[[], None]) -> None:
        try:
            change()
        except LinkError as error:
            refused.append(error)

    with Links() as net:
        for nic in nics:
            if nic.redirected:
                continue  # it has all of it
            set_sysctl(f"ipv6/conf/{nic.veth}/disable_ipv6", "0")
            attempt(partial(net.set, nic.veth, master=""))
            attempt(partial(net.set, nic.veth, mac=nic.mac, up=True))
            for address in nic.addresses:
                attempt(partial(net.add_address, nic.veth, address))
            for route in nic.routes:
                attempt(partial(restore_route, net, route))
            for known in nic.neighbours:
                attempt(partial(net.set_neighbour, nic.veth, known.address, known.mac))
    if refused:
        raise refused[0]


def _hand_over(net: Links, nics: Sequence[BridgedNic]) -> None:
    for nic in nics:
        if nic.redirected:
            # A macvlan is given multicast frames only to the groups that the guest does not tell.
            net.set(nic.veth, up=True, all_multicast=True)
        else:
            _enslave(net, nic)
        net.set(nic.bridge, up=True)
        net.add_address(nic.bridge, f"{nic.server}/32")
        if nic.guest_address6:
            _serve_ipv6(net, nic)
        if nic.redirected:
            continue  # routes lead to the interface itself
        for address in nic.guest_addresses:
            if ":" not in address:
                net.set_route(address, nic.bridge)
        for known in nic.neighbours:
            net.set_neighbour(nic.bridge, known.address, known.mac)
            net.set_behind(nic.veth, known.mac)
        if nic.neighbours:
            net.set(nic.veth, answered=True)


def _enslave(net: Links, nic: BridgedNic) -> None:
    set_sysctl(f"ipv6/conf/{nic.veth}/disable_ipv6", "1")
    net.flush_addresses(nic.veth)
    # A bridge takes frames to the MAC of a port as its own, so no port may have the guest's.
    # With two ports there is nothing to learn, and further MACs of a guest are found, too.
    net.set(nic.veth, mac=nic.port_mac, master=nic.bridge, learning=False)


def _serve_ipv6(net: Links, nic: BridgedNic) -> None:
    set_sysctl("ipv6/conf/all/forwarding", "1")
    set_sysctl(f"ipv6/conf/{nic.bridge}/disable_ipv6", "0")
    net.add_address(nic.bridge, f"{nic.server6}/64", dad=False, prefix_route=False)
    if nic.redirected:
        return
    for address in nic.guest_addresses:
        if ":" in address:
            net.set_route(address, nic.bridge)
    for route in nic.guest_routes6:
        net.set_route(route.destination, nic.bridge, gateway=route.gateway, onlink=True)


def restore_route(net: Links, route: KernelRoute) -> None:
    """Have a route again.

    Raises:
        LinkError: the kernel refuses.
    """
    net.set_route(
        route.destination,
        route.device,
        gateway=route.gateway,
        metric=route.metric,
        mtu=route.mtu,
    )


def restorable(routes: Sequence[KernelRoute], device: str) -> Iterator[KernelRoute]:
    """The routes of an interface that do not come with its addresses, those on the link first."""
    for route in sorted(routes, key=lambda route: bool(route.gateway)):
        if route.device == device and not route.automatic:
            yield route


def _server_addresses(taken: set[str]) -> Iterator[str]:
    """Link-local addresses for bridges; far from the well-known 169.254.169.254 and .1.1."""
    return (a for a in (f"169.254.77.{host}" for host in range(1, 255)) if a not in taken)


def _changed(mac: str, bits: int) -> str:
    """Another, locally administered MAC address."""
    first, rest = mac.split(":", 1)
    return f"{int(first, 16) ^ bits | 2:02x}:{rest}"


def _checksum_in_software(device: str) -> None:
    """Let the DHCP server's packets carry whole checksums.

    Guests whose DHCP client reads raw packets drop those that leave the sum to hardware.
    """
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sQ16x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
