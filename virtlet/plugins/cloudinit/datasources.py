"""The documents of cloud-init's data sources: meta-data and network, for NoCloud and config drives.

All are JSON and YAML at once. JSON is YAML with a few exceptions: characters that YAML forbids or
takes for line ends, escapes of characters outside the basic plane, and exponents without a point.
They are written so that both readers see the same.

Sources: "Networking config version 2" of cloud-init for NoCloud (version 1 cannot have a gateway
outside the interface's subnet, as Calico's is, or a route without one), and OpenStack's "Metadata
service" formats, version `latest`, for config drives.
"""

import json
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig, Pod
from virtlet.plugins.cloudinit.seed_annotations import META_DATA

_RISKY = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

_MAX_HOSTNAME = 63
"""Bytes of a host name on Linux."""


def dump(value: Any) -> str:
    """One line of text, for plain data."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        number = repr(value)
        return number if "." in number else number.replace("e", ".0e")
    return json.dumps(value)


def _text(value: str) -> str:
    return _RISKY.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))


def meta_data(pod: Pod, keys: Sequence[str]) -> dict[str, Any]:
    """The meta-data of a pod's VM, with the public keys that may log in.

    The instance id has the pod's name, not the attempt: a restarted container has a fresh disk and
    is set up in any case, while a disk that outlives its pod must not be set up again.
    """
    meta = pod.config.metadata
    generated: dict[str, Any] = {
        "instance-id": f"{meta.name}.{meta.namespace}",
        "local-hostname": _hostname(pod),
    }
    if keys:
        generated["public-keys"] = list(keys)
    return generated | META_DATA.of(pod)


def _hostname(pod: Pod) -> str:
    # A name that is too long is cut as the kubelet cuts it for containers.
    return pod.config.hostname or pod.config.metadata.name[:_MAX_HOSTNAME].rstrip("-.")


def meta_data_json(meta_data: Mapping[str, Any]) -> dict[str, Any]:
    """meta_data.json: the meta-data, with OpenStack's names too."""
    document = dict(meta_data)
    document.setdefault("uuid", meta_data.get("instance-id", ""))
    document.setdefault("hostname", meta_data.get("local-hostname", ""))
    keys = meta_data.get("public-keys")
    if isinstance(keys, list):
        document.setdefault("public_keys", {f"key-{n}": key for n, key in enumerate(keys)})
    elif isinstance(keys, Mapping):
        document.setdefault("public_keys", dict(keys))
    return document


def network_config(network: Network) -> dict[str, Any] | None:
    """The version 2 document of a pod's network; None if it has no interface."""
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
    """Whether a route does not follow from the addresses and the other routes.

    cloud-init's renderer for /etc/network/interfaces fails on routes without a gateway, so that
    those are left out that the guest has in any case.
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
    # IPv4 has no scopes: a link-local gateway (Calico's) needs `on-link` like any other.
    return (address.version == 6 and address.is_link_local) or any(
        address in ip_interface(own).network for own in nic.addresses
    )


def network_data_json(network: Network) -> dict[str, Any]:
    """network_data.json of a pod's network.

    cloud-init gives an interface the `name` of its link; the `id` does not rename it.
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

    OpenStack has no search list. cloud-init makes a `nameserver` of its version 1 configuration of
    each service, which takes `search`, and a list of addresses, which may be empty.
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
