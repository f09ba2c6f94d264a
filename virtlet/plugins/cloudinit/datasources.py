"""The documents of cloud-init's data sources: meta-data, and what a config drive has.

All are JSON and YAML at once. JSON is YAML but for a few corners: characters YAML forbids or takes
for line ends, characters outside the basic plane in escapes, and exponents without a point. Here
they are written so that both readers see the same.

Source of the config drive: OpenStack's "Metadata service" formats, version `latest`.
"""

import json
import re
from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from virtlet.model.network import Network, Nic
from virtlet.model.pod import DnsConfig, Pod
from virtlet.plugins.cloudinit.annotations import META_DATA, SSH_KEYS

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


def meta_data(pod: Pod) -> dict[str, Any]:
    """The meta-data of a pod's VM.

    The instance is the pod by name, not the attempt: a restarted container has a fresh disk and
    so runs everything anyway, while a disk that outlives its pod must not be set up again.
    """
    meta = pod.config.metadata
    generated: dict[str, Any] = {
        "instance-id": f"{meta.name}.{meta.namespace}",
        "local-hostname": _hostname(pod),
    }
    keys = SSH_KEYS.of(pod)
    if keys:
        generated["public-keys"] = list(keys)
    return generated | META_DATA.of(pod)


def _hostname(pod: Pod) -> str:
    # A name that is too long is cut as the kubelet cuts it for containers.
    return pod.config.hostname or pod.config.metadata.name[:_MAX_HOSTNAME].rstrip("-.")


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
