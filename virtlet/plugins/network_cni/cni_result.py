"""What a CNI ADD returns, read strictly (versions 0.3.0 to 1.1.0 of the specification)."""

import re
from collections.abc import Callable, Mapping
from ipaddress import (
    IPv4Interface,
    IPv6Interface,
)
from typing import Any, TypeVar

from attrs import field, frozen

from virtlet.model.network import Route
from virtlet.model.pod import DnsConfig
from virtlet.model.strict_ip import ip_address, ip_interface, ip_network
from virtlet.plugins.network_cni.cni_config import SUPPORTED, at_least

T = TypeVar("T")

IFNAME = "eth0"
"""Name of a pod's interface, as everywhere in Kubernetes."""
DOMAIN = re.compile(r"\.|[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
"""What a DNS search domain looks like."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_INTERFACE_NAME = re.compile(r"[^\s/:]{1,15}")


@frozen
class CniInterface:
    """An interface a plugin made, in the pod or on the node."""

    name: str
    mac: str
    """Lower case; "" when the plugin does not say."""
    sandbox: str
    """"" for an interface of the node."""
    pci: str = ""
    """Address of the PCI device that it is, where the plugin says."""

    @property
    def in_pod(self) -> bool:
        """Whether it is in a pod's namespace, of which the path is told."""
        return "/" in self.sandbox


@frozen
class CniAddress:
    """An address a plugin gave."""

    interface: int | None
    """Index into the interfaces."""
    address: IPv4Interface | IPv6Interface
    gateway: str
    """"" when there is none."""


@frozen
class CniResult:
    """The result of one ADD: what this plugin and all earlier ones made."""

    interfaces: tuple[CniInterface, ...]
    addresses: tuple[CniAddress, ...]
    routes: tuple[Route, ...]
    dns: DnsConfig
    document: Mapping[str, Any] = field(repr=False)
    """As the plugin wrote it: the next plugin's prevResult."""


def parse(document: Any, version: str) -> CniResult:
    """Check a result.

    Args:
        document: the JSON document the plugin printed.
        version: of the network's configuration; a result that does not say has this one.

    Raises:
        ValueError: what is wrong with it.
    """
    result = _mapping(document, "the result")
    version = _text(result, "cniVersion") or version
    if version not in SUPPORTED:
        raise ValueError(f"cniVersion {version!r}: supported are {', '.join(SUPPORTED)}")
    interfaces = _each(result, "interfaces", _interface)
    addresses = _each(
        result, "ips", lambda entry, where: _address(entry, where, version, len(interfaces))
    )
    return CniResult(
        interfaces=interfaces,
        addresses=addresses,
        routes=_each(result, "routes", _route),
        dns=_dns(result.get("dns")),
        document={**result, "cniVersion": version},
    )


def _interface(entry: Any, where: str) -> CniInterface:
    interface = _mapping(entry, where)
    name = _text(interface, "name", where)
    if not _INTERFACE_NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{where}.name {name!r} is not an interface name")
    mac = _text(interface, "mac", where).lower()
    # The AWS VPC's plugin keeps two numbers for its DEL in an interface that there is not: that of
    # a VLAN as its MAC address, and that of a device as its sandbox.
    mac = "" if mac.isdecimal() else mac
    if mac and not _MAC.fullmatch(mac):
        raise ValueError(f"{where}.mac {mac!r} is not a MAC address")
    pci = _text(interface, "pciID", where).lower()
    return CniInterface(name, mac, _text(interface, "sandbox", where), pci)


def _address(entry: Any, where: str, version: str, interfaces: int) -> CniAddress:
    item = _mapping(entry, where)
    try:
        # A prefix length must be there: without one Python reads a single host.
        text = _text(item, "address", where)
        address = ip_interface(text if "/" in text else "")
    except ValueError:
        raise ValueError(
            f"{where}.address {item.get('address')!r} is not an address/prefix"
        ) from None
    if not at_least(version, "1.0.0") and _text(item, "version", where) != str(address.version):
        raise ValueError(f"{where}.version is not that of {address}")
    index = item.get("interface")
    if index is not None and not (_is_integer(index) and 0 <= index < max(interfaces, 1)):
        raise ValueError(f"{where}.interface {index!r} is not an index into interfaces")
    return CniAddress(
        interface=index,
        address=address,
        gateway=_gateway(item, "gateway", where, address.version),
    )


def _route(entry: Any, where: str) -> Route:
    item = _mapping(entry, where)
    try:
        text = _text(item, "dst", where)
        destination = ip_network(text if "/" in text else "", strict=False)
    except ValueError:
        raise ValueError(f"{where}.dst {item.get('dst')!r} is not an address/prefix") from None
    metric = item.get("priority") or 0
    if not _is_integer(metric) or not 0 <= metric < 2**32:
        raise ValueError(f"{where}.priority {metric!r} is not a metric")
    return Route(
        destination=str(destination),
        gateway=_gateway(item, "gw", where, destination.version),
        metric=metric,
    )


def _dns(value: Any) -> DnsConfig:
    dns = _mapping(value or {}, "dns")
    servers = _each(dns, "nameservers", _plain)
    for server in servers:
        try:
            ip_address(server)
        except ValueError:
            raise ValueError(f"dns.nameservers: {server!r} is not an address") from None
    searches = _each(dns, "search", _domain)
    domain = _text(dns, "domain", "dns") and _domain(dns["domain"], "dns.domain")
    if domain and domain not in searches:
        # resolv.conf(5): `search` wins over `domain`, so the domain comes last.
        searches = (*searches, domain)
    return DnsConfig(servers=servers, searches=searches, options=_each(dns, "options", _plain))


def _gateway(item: Mapping[str, Any], key: str, where: str, family: int) -> str:
    text = _text(item, key, where)
    if not text:
        return ""
    try:
        gateway = ip_address(text)
    except ValueError:
        raise ValueError(f"{where}.{key} {text!r} is not an address") from None
    if gateway.version != family:
        raise ValueError(f"{where}.{key} {text} is not of IPv{family}")
    return str(gateway)


def _domain(entry: Any, where: str) -> str:
    if not isinstance(entry, str) or not DOMAIN.fullmatch(entry):
        raise ValueError(f"{where} {entry!r} is not a domain")
    return entry


def _plain(entry: Any, where: str) -> str:
    if not isinstance(entry, str) or not entry or entry.split() != [entry]:
        raise ValueError(f"{where} must be a word")
    return entry


def _each(document: Mapping[str, Any], key: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list")
    return tuple(read(entry, f"{key}[{number}]") for number, entry in enumerate(value))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    return value


def _text(document: Mapping[str, Any], key: str, where: str = "") -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}{'.' if where else ''}{key} must be a text")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
