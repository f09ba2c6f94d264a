"""network-config: the pod's network as the guest configures it.

Source: "Networking config version 2" of cloud-init. Version 1 cannot say that a gateway lies
outside the interface's subnet (Calico's does) nor that a route has none.
"""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from virtlet.model.network import Network, Nic, Route


def network_config(network: Network) -> dict[str, Any] | None:
    """The version 2 document of a pod's network; None when it has no interface."""
    if not network.nics:
        return None
    ethernets = {nic.name: _ethernet(nic) for nic in network.nics}
    nameservers = {
        key: list(values)
        for key, values in (
            ("addresses", network.dns.servers),
            ("search", network.dns.searches),
        )
        if values
    }
    if nameservers:
        ethernets[network.nics[0].name]["nameservers"] = nameservers
    return {"version": 2, "ethernets": ethernets}


def _ethernet(nic: Nic) -> dict[str, Any]:
    config: dict[str, Any] = {
        "match": {"macaddress": nic.mac},
        "set-name": nic.name,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
    }
    if nic.mtu:
        config["mtu"] = nic.mtu
    if nic.addresses:
        config["addresses"] = list(nic.addresses)
    routes = [_route(route, nic) for route in nic.routes if _needed(route, nic)]
    if routes:
        config["routes"] = routes
    return config


def _needed(route: Route, nic: Nic) -> bool:
    """Whether a route says more than the addresses and the other routes already do.

    cloud-init's renderer for /etc/network/interfaces stumbles over routes without a gateway, so
    none is written that the guest has anyway.
    """
    if route.gateway:
        return True
    destination = ip_network(route.destination, strict=False)
    if any(destination == ip_network(f"{r.gateway}") for r in nic.routes if r.gateway):
        return False  # the way to a gateway, which `on-link` says
    return not any(
        destination.version == own.version and destination.subnet_of(own.network)  # type: ignore[arg-type]
        for own in map(ip_interface, nic.addresses)
    )


def _route(route: Route, nic: Nic) -> dict[str, Any]:
    config: dict[str, Any] = {"to": route.destination}
    if route.gateway:
        config["via"] = route.gateway
        if not _reachable(route.gateway, nic):
            config["on-link"] = True
    else:
        config["scope"] = "link"
    if route.metric:
        config["metric"] = route.metric
    return config


def _reachable(gateway: str, nic: Nic) -> bool:
    address = ip_address(gateway)
    # IPv4 knows no scopes: a link-local gateway (Calico's) is as far away as any other.
    return (address.version == 6 and address.is_link_local) or any(
        address in ip_interface(own).network for own in nic.addresses
    )
