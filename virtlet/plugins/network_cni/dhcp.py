"""What the DHCP server of a pod is told: a configuration for dnsmasq(8)."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface

from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni.bridging import BridgedNic

_OPTION_BYTES = 255
"""Length of a DHCPv4 option (RFC 2132)."""
_RA_INTERVAL = 600
_RA_LIFETIME = 1800
"""Seconds between router advertisements, and that one is good for."""


def configuration(hostname: str, network: Network, bridged_nics: Sequence[BridgedNic]) -> str:
    """The whole configuration file.

    Leases are fixed and endless, so the server keeps no state: a restarted one answers the same.
    """
    lines = [
        "port=0",
        "no-hosts",
        "no-resolv",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        "bind-interfaces",
        "except-interface=lo",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "dhcp-ignore=tag:!known",
    ]
    for bridged, nic in zip(bridged_nics, network.nics, strict=True):
        lines.append(f"interface={bridged.bridge}")
        lines.extend(_ipv4(hostname, nic, bridged, network.dns))
        lines.extend(_ipv6(nic, bridged, network.dns))
    return "\n".join((*lines, ""))


def _ipv4(hostname: str, nic: Nic, bridged: BridgedNic, dns: DnsConfig) -> Iterator[str]:
    address = next((ip_interface(a) for a in nic.addresses if ":" not in a), None)
    if address is None:
        return
    tag = f"nic{bridged.index}"
    # The bridge has no address in the guest's subnet: shared-network makes the range usable.
    yield f"shared-network={bridged.bridge},{address.ip}"
    yield f"dhcp-range={address.ip},static,{address.netmask},infinite"
    yield f"dhcp-host={nic.mac},set:{tag},{address.ip},infinite"
    # Not in dhcp-host, where a name like `12` or `infinite` would be a lease time.
    yield f'dhcp-option=tag:{tag},12,"{hostname}"'
    routes = [route for route in nic.routes if ":" not in route.destination]
    default = next((r.gateway for r in routes if r.destination == "0.0.0.0/0"), "")
    # Without a value it is left out: else dnsmasq would name itself.
    yield f"dhcp-option=tag:{tag},option:router{',' if default else ''}{default}"
    if routes:
        yield f"dhcp-option=tag:{tag},option:classless-static-route,{_classless(routes)}"
    yield f"dhcp-option=tag:{tag},option:mtu,{nic.mtu}"
    servers = [s for s in dns.servers if ip_address(s).version == 4]
    if servers:
        yield f"dhcp-option=tag:{tag},option:dns-server,{','.join(servers)}"
    searches = _fitting(dns.searches)
    if searches:
        yield f"dhcp-option=tag:{tag},option:domain-name,{searches[0]}"
        yield f"dhcp-option=tag:{tag},option:domain-search,{','.join(searches)}"


def _ipv6(nic: Nic, bridged: BridgedNic, dns: DnsConfig) -> Iterator[str]:
    address = next((ip_interface(a) for a in nic.addresses if ":" in a), None)
    if address is None:
        return
    tag = f"nic{bridged.index}"
    # Neighbours are on the link only where the pod's prefix says so; dnsmasq knows no longer
    # prefix than /64, so the guest asks the router for those.
    on_link = "" if address.network.prefixlen == 64 else ",off-link"
    yield f"dhcp-range={address.ip},static{on_link},64,infinite"
    yield f"dhcp-host={nic.mac},set:{tag},[{address.ip}],infinite"
    yield "enable-ra"
    default = any(r.destination == "::/0" for r in nic.routes)
    yield f"ra-param={bridged.bridge},mtu:{nic.mtu},{_RA_INTERVAL},{_RA_LIFETIME * default}"
    servers = [s for s in dns.servers if ip_address(s).version == 6]
    if servers:
        yield f"dhcp-option=tag:{tag},option6:dns-server,{','.join(f'[{s}]' for s in servers)}"
    searches = _fitting(dns.searches)
    if searches:
        yield f"dhcp-option=tag:{tag},option6:domain-search,{','.join(searches)}"


def _classless(routes: Sequence[Route]) -> str:
    """RFC 3442; clients that know it ignore the router option, so the default is here too."""
    return ",".join(f"{r.destination},{r.gateway or '0.0.0.0'}" for r in routes)


def _fitting(searches: Sequence[str]) -> list[str]:
    """As many search domains, the first first, as one option can hold."""
    fitting: list[str] = []
    size = 0
    for domain in filter(None, (search.rstrip(".") for search in searches)):
        size += len(domain) + 2
        if size > _OPTION_BYTES:
            break
        fitting.append(domain)
    return fitting
