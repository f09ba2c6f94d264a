"""The documents of a config drive.

Source: OpenStack's "Metadata service" formats, version `latest`.
"""

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from virtlet.model.network import Interface, Network


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
                "id": interface.name,
                "name": interface.name,
                "type": "phy",
                "ethernet_mac_address": interface.mac,
                "mtu": interface.mtu or None,
            }
            for interface in network.interfaces
        ],
        "networks": [entry for interface in network.interfaces for entry in _networks(interface)],
        "services": [{"type": "dns", "address": server} for server in network.dns.servers],
    }


def _networks(interface: Interface) -> list[dict[str, Any]]:
    """One entry per address; routes stand with the first address of their family."""
    entries = []
    seen: set[int] = set()
    for number, text in enumerate(interface.addresses):
        address = ip_interface(text)
        routes = [] if address.version in seen else _routes(interface, address.version)
        seen.add(address.version)
        entries.append(
            {
                "id": f"{interface.name}-{number}",
                "network_id": f"{interface.name}-{number}",
                "type": f"ipv{address.version}",
                "link": interface.name,
                "ip_address": str(address.ip),
                "netmask": str(address.netmask),
                "routes": routes,
            }
        )
    return entries


def _routes(interface: Interface, version: int) -> list[dict[str, str]]:
    # The format has no routes without a gateway; those on the link follow from the address.
    return [
        {
            "network": str(ip_network(route.destination).network_address),
            "netmask": str(ip_network(route.destination).netmask),
            "gateway": route.gateway,
        }
        for route in interface.routes
        if route.gateway and ip_network(route.destination).version == version
    ]
