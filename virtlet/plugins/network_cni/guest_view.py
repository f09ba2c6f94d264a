"""What the guest is to be given: interfaces, addresses and routes, after CNI's ADD.

Where plugins configured the pod's interfaces, the kernel is asked, because later plugins of a list
change them and some (Calico, Multus) do not put everything into their result. The result says the
addresses that are not configured. The pod's own interface comes first, then those that the pod's
annotation names, those of the result, and the others by their names: the kernel's numbers say
nothing, as an interface that was made on the node keeps its number there.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from attrs import evolve, frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.links import KernelRoute, Link, Neighbour
from virtlet.model.network import Nic, Route
from virtlet.model.option import TEXT, Annotation, Option, integer
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

NETWORKS: Annotation[str] = Annotation(
    name="k8s.v1.cni.cncf.io/networks",
    kind=TEXT,
    default="",
    help="Further networks of the pod, which Multus makes; the guest's NICs come in this order.",
)

_ATTACHABLE = ("veth", "macvlan")
"""Kinds of interfaces that become NICs, with an address or without."""
_LENT = "vfio"
"""Kind that stands for hardware that has no interface, as it has vfio-pci already."""
_LEADING_NOWHERE = ("dummy",)
"""Kinds of interfaces whose addresses are for programs of the pod itself."""
_NAME = re.compile(r"[A-Za-z0-9_.@-]+")
_LINK_LOCAL = ip_network("169.254.0.0/16")
_USUAL_MTU = 1500
_DEFAULT_METRIC = {4: 0, 6: 1024}
"""What the kernel shows for a route that was made without a metric."""


@frozen
class Sandbox:
    """The pod's namespace as CNI's plugins left it."""

    links: tuple[Link, ...]
    routes: tuple[KernelRoute, ...]
    neighbours: tuple[Neighbour, ...] = ()


def links(
    sandbox: Sandbox, result: CniResult, networks: str = "", *, hardware: bool = False
) -> tuple[Link, ...]:
    """The interfaces that become the guest's NICs, in a stable order.

    Args:
        sandbox: the pod's namespace.
        result: of the last plugin.
        networks: the pod's annotation of that name.
        hardware: whether PCI devices can be NICs.

    Raises:
        FailedPrecondition: CNI gave an interface that cannot be attached, none, or two of one
            MAC address.
    """
    promised = [i.name for i in result.interfaces if i.in_pod] or [IFNAME]
    found = [
        link
        for link in sandbox.links
        if "LOOPBACK" not in link.flags and (link.name in promised or _is_nic(link))
    ]
    if hardware:
        found += _lent(result, {link.name for link in found})
    missing = set(promised).difference(link.name for link in found)
    if missing:
        raise FailedPrecondition(
            f"CNI told of interface {', '.join(sorted(missing))} but the pod has none of that name"
        )
    first_of: dict[str, str] = {}
    for link in found:
        if is_hardware(link) and not hardware:
            raise FailedPrecondition(
                f"CNI gave the pod {link.name}, the PCI device {link.pci}: a VM can have it where "
                "the node's setting enableSriov is true"
            )
        if link.kind not in _ATTACHABLE and not is_hardware(link):
            raise FailedPrecondition(
                f"CNI gave the pod {link.name} of kind {link.kind or 'hardware'}: a VM can have "
                "veth and macvlan interfaces and PCI devices only; use a CNI plugin that makes "
                "those (bridge, ptp, macvlan, Calico, Flannel, SR-IOV, …)"
            )
        if not _NAME.fullmatch(link.name):
            raise FailedPrecondition(
                f"the pod's interface {link.name!r} has a name that no firewall rule can hold: use "
                "letters, digits, '_', '.', '@' and '-'"
            )
        other = first_of.setdefault(link.mac, link.name)
        if other != link.name:
            raise FailedPrecondition(
                f"CNI gave the pod {other} and {link.name} with one MAC address, {link.mac}: a "
                "guest tells its NICs apart by it; correct the MAC addresses that the pod asks for"
            )
    order = (IFNAME, *requested(networks), *promised)
    places = {name: place for place, name in reversed(list(enumerate(order)))}
    return tuple(
        sorted(found, key=lambda link: (places.get(link.name, len(order)), _natural(link.name)))
    )


def requested(networks: str) -> tuple[str, ...]:
    """The interfaces that an annotation of further networks asks for, in its order.

    It is Multus that judges the annotation: of one that cannot be read nothing is taken.

    Args:
        networks: a JSON list of objects, or `NAMESPACE/NAME@INTERFACE, …`.
    """
    try:
        items = json.loads(networks) if networks.lstrip().startswith("[") else networks.split(",")
    except (ValueError, RecursionError):
        return ()
    names = (
        item.get("interface") if isinstance(item, dict) else str(item).partition("@")[2].strip()
        for item in items
    )
    return tuple(
        name if name and isinstance(name, str) else f"net{number}"
        for number, name in enumerate(names, 1)
    )


def is_hardware(link: Link) -> bool:
    """Whether an interface is a PCI device, which the guest can have as it is."""
    return bool(link.pci) and link.kind in ("", _LENT)


def _lent(result: CniResult, there: Collection[str]) -> Iterator[Link]:
    """What the result tells of PCI devices that have no interface in the pod."""
    for told in result.interfaces:
        if told.in_pod and told.pci and told.name not in there:
            if not told.mac:
                raise FailedPrecondition(
                    f"CNI gave the pod {told.name}, the PCI device {told.pci}, and no MAC address "
                    "for it, by which a guest finds it: have its network set one"
                )
            yield Link(
                name=told.name,
                kind=_LENT,
                mac=told.mac,
                mtu=_USUAL_MTU,
                flags=frozenset(),
                addresses=(),
                pci=told.pci,
            )


def _is_nic(link: Link) -> bool:
    """Whether an interface that the result does not name is for the guest."""
    return (
        link.kind in _ATTACHABLE
        or is_hardware(link)
        or (bool(link.addresses) and link.kind not in _LEADING_NOWHERE)
    )


def _natural(name: str) -> tuple[str, int, str]:
    """A key by which net2 comes before net10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name


def nics(
    sandbox: Sandbox, result: CniResult, chosen: Sequence[Link], calico_subnet_size: int
) -> tuple[Nic, ...]:
    """The guest's NICs, without taps, for what `links` chose.

    Raises:
        FailedPrecondition: the pod has no address at all.
    """
    view = tuple(
        _widened(_nic(sandbox, result, link), calico_subnet_size, sandbox.neighbours)
        for link in chosen
    )
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
    # Cilium leaves room for its tunnel by the routes' MTU.
    limits = (r.mtu for r in sandbox.routes if r.device == link.name and r.mtu)
    return Nic(
        name=link.name,
        mac=link.mac,
        mtu=min((link.mtu, *limits)),
        addresses=tuple(map(str, addresses)),
        routes=routes,
        kind="vfio" if is_hardware(link) else "tap",
        device=link.pci if is_hardware(link) else "",
    )


def _belongs(result: CniResult, index: int | None, name: str) -> bool:
    if index is None or not result.interfaces:
        return name == IFNAME
    return result.interfaces[index].in_pod and result.interfaces[index].name == name


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


def _widened(nic: Nic, size: int, neighbours: Sequence[Neighbour]) -> Nic:
    """Hide Calico's dummy gateway from guests, many of which cannot use one off their subnet.

    Calico gives a /32 and a default route by the link-local 169.254.1.1, and its end of the veth
    answers ARP for every address. So any address of a wider subnet will do as the gateway.

    Args:
        nic: as the pod has it.
        size: the wider prefix's length.
        neighbours: those that the pod does not ask for.
    """
    if not nic.addresses or size == 32:
        return nic
    first = ip_interface(nic.addresses[0])
    dummies = {r.gateway for r in nic.routes if r.gateway and ip_address(r.gateway) in _LINK_LOCAL}
    if first.version != 4 or first.network.prefixlen != 32 or len(dummies) != 1:
        return nic
    if any(each.device == nic.name and each.address in dummies for each in neighbours):
        return nic  # the AWS VPC's end of the veth answers nobody
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
