"""What the guest is to be given: interfaces, addresses and routes, after CNI's ADD.

Where plugins configured the pod's interfaces, the kernel is asked, because later plugins of a list
change them and some (Calico, Multus) do not put everything into their result. The result says the
addresses that are not configured, and the order of all.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from attrs import evolve, frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.links import KernelRoute, Link
from virtlet.model.network import Nic, Route
from virtlet.model.option import Option, integer
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni.cni_result import IFNAME, CniResult

CALICO_SUBNET_SIZE: Option[int] = Option(
    field="calicoSubnetSize",
    flag="--calico-subnet-size",
    env="VIRTLET_CALICO_SUBNET",
    kind=integer(1, 32),
    default="24",
    help="Prefix length a guest is told instead of Calico's /32; 32 leaves it as it is.",
    mappable=True,
)

_LINK_LOCAL = ip_network("169.254.0.0/16")
_DEFAULT_METRIC = {4: 0, 6: 1024}
"""What the kernel shows for a route that was made without a metric."""


@frozen
class Sandbox:
    """The pod's namespace as CNI's plugins left it."""

    links: tuple[Link, ...]
    routes: tuple[KernelRoute, ...]


def links(sandbox: Sandbox, result: CniResult) -> tuple[Link, ...]:
    """The interfaces that become the guest's NICs, the pod's own first.

    Raises:
        FailedPrecondition: CNI gave an interface that cannot be bridged, or none.
    """
    promised = {i.name for i in result.interfaces if i.sandbox} or {IFNAME}
    found = [
        link
        for link in sandbox.links
        if "LOOPBACK" not in link.flags
        and (link.name in promised or link.kind == "veth" or link.addresses)
    ]
    missing = promised.difference(link.name for link in found)
    if missing:
        raise FailedPrecondition(
            f"CNI told of interface {', '.join(sorted(missing))} but the pod has none of that name"
        )
    for link in found:
        if link.kind != "veth":
            raise FailedPrecondition(
                f"CNI gave the pod {link.name} of kind {link.kind or 'hardware'}: a VM can be "
                "bridged to veth interfaces only; use a CNI plugin that makes those (bridge, ptp, "
                "Calico, Flannel, …)"
            )
    return tuple(sorted(found, key=lambda link: link.name != IFNAME))


def nics(
    sandbox: Sandbox, result: CniResult, chosen: Sequence[Link], calico_subnet_size: int
) -> tuple[Nic, ...]:
    """The guest's NICs, without taps, for what `links` chose.

    Raises:
        FailedPrecondition: the pod has no address at all.
    """
    view = tuple(_widened(_nic(sandbox, result, link), calico_subnet_size) for link in chosen)
    if not any(nic.addresses for nic in view):
        raise FailedPrecondition("CNI gave the pod no address")
    return view


def dns(asked: DnsConfig, offered: DnsConfig) -> DnsConfig:
    """The kubelet's resolver settings, completed from CNI's."""
    return DnsConfig(
        servers=asked.servers or offered.servers,
        searches=asked.searches or offered.searches,
        options=asked.options or offered.options,
    )


def _nic(sandbox: Sandbox, result: CniResult, link: Link) -> Nic:
    configured = {ip_interface(text).ip: ip_interface(text) for text in link.addresses}
    told = [a.address for a in result.addresses if _belongs(result, a.interface, link.name)]
    addresses = [configured.pop(a.ip, a) for a in told] + list(configured.values())
    if link.addresses:
        routes = tuple(_from_kernel(sandbox.routes, link.name))
        connected = {r.destination for r in sandbox.routes if r.automatic and r.device == link.name}
        addresses = [_on_link(address, connected) for address in addresses]
    else:
        routes = tuple(_from_result(result, link.name))
    return Nic(
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        addresses=tuple(map(str, addresses)),
        routes=routes,
    )


def _belongs(result: CniResult, index: int | None, name: str) -> bool:
    if index is None or not result.interfaces:
        return name == IFNAME
    return bool(result.interfaces[index].sandbox) and result.interfaces[index].name == name


def _on_link(
    address: IPv4Interface | IPv6Interface, connected: set[str]
) -> IPv4Interface | IPv6Interface:
    """The address alone when its neighbours are not on the link, as with the ptp plugin."""
    if address.network.prefixlen < address.max_prefixlen and str(address.network) not in connected:
        return ip_interface(address.ip)
    return address


def _from_kernel(routes: Sequence[KernelRoute], device: str) -> Iterator[Route]:
    # Routes on the link first: they make the others' gateways reachable.
    for route in sorted(routes, key=lambda route: bool(route.gateway)):
        destination = ip_network(route.destination)
        if route.device != device or route.automatic or destination.is_multicast:
            continue
        metric = 0 if route.metric == _DEFAULT_METRIC[destination.version] else route.metric
        yield Route(destination=route.destination, gateway=route.gateway, metric=metric)


def _from_result(result: CniResult, name: str) -> Iterator[Route]:
    if name != IFNAME:
        return  # "each route must be relevant for the interface of CNI_IFNAME"
    gateways = {a.address.version: a.gateway for a in reversed(result.addresses) if a.gateway}
    for route in result.routes:
        family = ip_network(route.destination).version
        yield evolve(route, gateway=route.gateway or gateways.get(family, ""))


def _widened(nic: Nic, size: int) -> Nic:
    """Hide Calico's dummy gateway from guests, many of which cannot use one off their subnet.

    Calico gives a /32 and a default route by the link-local 169.254.1.1, and its end of the veth
    answers ARP for every address. So any address of a wider subnet will do as the gateway.
    """
    if not nic.addresses or size == 32:
        return nic
    first = ip_interface(nic.addresses[0])
    dummies = {r.gateway for r in nic.routes if r.gateway and ip_address(r.gateway) in _LINK_LOCAL}
    if first.version != 4 or first.network.prefixlen != 32 or len(dummies) != 1:
        return nic
    subnet = ip_network(f"{first.ip}/{size}", strict=False)
    gateway = str(next(host for host in subnet.hosts() if host != first.ip))
    dummy = dummies.pop()
    return evolve(
        nic,
        addresses=(f"{first.ip}/{size}", *nic.addresses[1:]),
        routes=tuple(
            evolve(route, gateway=gateway if route.gateway == dummy else route.gateway)
            for route in nic.routes
            if route.destination != f"{dummy}/32"
        ),
    )
