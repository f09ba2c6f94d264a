"""The documents of a config drive.

Source: OpenStack's "Metadata service" formats, version `latest`.
"""

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from virtlet.model.network import Network, Nic
from virtlet.model.pod import DnsConfig


def meta_data_json(meta_data: Mapping[str, Any]) -> dict[str, Any]:
    """meta_data.json: the meta-data under OpenStack's names too."""
    document = dict(meta_data)
    document.setdefault("uuid", meta_data.get("instance-id", ""))
    document.setdefault("hostname", meta_data.get("local-hostname", ""))
    keys = meta_data.get("public-keys")
    if isinstance(keys, list):
        document.setdefault("public_keys", {f"key-{n}": key for n, key in enumerate(keys)})
    elif isinstance(keys, Mapping):
        document.setdefault("public_keys", dict(keys))
    return document


def network_data_json(network: Network) -> dict[str, Any]:
    """network_data.json of a pod's network.

    cloud-init gives an interface the `name` of its link; the `id` alone renames nothing.
    """
    return {
        "links": [
            {
                "id": nic.name,
                "name": nic.name,
                "type": "phy",
                "ethernet_mac_address": nic.mac,
                "mtu": nic.mtu or None,
            }
            for nic in network.nics
        ],
        "networks": [entry for nic in network.nics for entry in _networks(nic)],
        "services": _services(network.dns),
    }


def _services(dns: DnsConfig) -> list[dict[str, Any]]:
    """The resolver's servers; the search list stands with the first.

    OpenStack knows no search list. cloud-init makes a `nameserver` of its version 1 configuration
    of each service, which takes `search`, and a list of addresses, empty where there are none.
    """
    services: list[dict[str, Any]] = [{"type": "dns", "address": s} for s in dns.servers]
    if dns.searches:
        services = services or [{"type": "dns", "address": []}]
        services[0]["search"] = list(dns.searches)
    return services


def _networks(nic: Nic) -> list[dict[str, Any]]:
    """One entry per address; routes stand with the first address of their family."""
    entries = []
    seen: set[int] = set()
    for number, text in enumerate(nic.addresses):
        address = ip_interface(text)
        routes = [] if address.version in seen else _routes(nic, address.version)
        seen.add(address.version)
        entries.append(
            {
                "id": f"{nic.name}-{number}",
                "network_id": f"{nic.name}-{number}",
                "type": f"ipv{address.version}",
                "link": nic.name,
                "ip_address": str(address.ip),
                "netmask": str(address.netmask),
                "routes": routes,
            }
        )
    return entries


def _routes(nic: Nic, version: int) -> list[dict[str, str]]:
    # The format has no routes without a gateway; those on the link follow from the address.
    return [
        {
            "network": str(ip_network(route.destination).network_address),
            "netmask": str(ip_network(route.destination).netmask),
            "gateway": route.gateway,
        }
        for route in nic.routes
        if route.gateway and ip_network(route.destination).version == version
    ]
