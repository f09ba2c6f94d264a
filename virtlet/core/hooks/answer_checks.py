"""What is wrong with a plugin's answer beyond its types, as a clause for a message; or ""."""

import re
from collections.abc import Callable
from pathlib import Path

from virtlet.model.image import RecognizedImage
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.model.strict_ip import ip_address, ip_interface, ip_network

_UNICAST_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[^\s,\"]+")
_BOUNDS = (("mtu", 68, 65535), ("queues", 1, 256), ("boot_order", 0, 1 << 16))


def recognition_check(file: Path) -> Callable[[str, RecognizedImage | None], str]:
    """What says what is wrong with how a plugin recognised a file, which it may only read."""
    before = _state(file)

    def check(plugin: str, found: RecognizedImage | None) -> str:
        if _state(file) != before:
            return "changed the file, which is for reading alone"
        if found is not None and (not found.format or found.virtual_size < 0):
            return "returned a RecognizedImage without a format or of a negative size"
        return ""

    return check


def _state(file: Path) -> tuple[int, int, int] | None:
    """What differs if a file was changed, replaced or removed."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def network_problem(network: Network) -> str:
    """What makes a network useless."""
    for number, nic in enumerate(network.nics):
        flaw = _flaw_of(nic)
        if flaw:
            return f"returned a Network whose nics[{number}].{flaw}"
    if len({nic.mac for nic in network.nics}) < len(network.nics):
        return "returned a Network whose nics have one MAC address twice"
    if not _is_dns(network.dns):
        return "returned a Network whose dns has a server or search domain that cannot be"
    return ""


def adjustment_problem(before: Network, after: Network) -> str:
    """What a plugin may not make of a network."""
    changed = _changed(before, after)
    if changed:
        return f"changed {changed}, which is left to the plugin that made the network"
    return network_problem(after)


def _changed(before: Network, after: Network) -> str:
    """The first difference in what undoes the network, or connects it; or ""."""
    for name in ("netns", "details"):
        if getattr(before, name) != getattr(after, name):
            return name
    if len(before.nics) != len(after.nics):
        return "the number of nics"
    for number, (old, new) in enumerate(zip(before.nics, after.nics, strict=True)):
        for name in ("name", "kind", "device"):
            if getattr(old, name) != getattr(new, name):
                return f"nics[{number}].{name}"
    return ""


def _flaw_of(nic: Nic) -> str:
    if not _UNICAST_MAC.fullmatch(nic.mac):
        return "mac is not a unicast MAC address in lower case with colons"
    for name, least, most in _BOUNDS:
        if getattr(nic, name) < least:
            return f"{name} is below {least}"
        if getattr(nic, name) > most:
            return f"{name} is above {most}"
    if not all(map(_is_cidr, nic.addresses)):
        return "addresses has one that is not in CIDR form"
    if not all(map(_can_be, nic.routes)):
        return "routes has one whose destination or gateway cannot be"
    return ""


def _is_cidr(address: str) -> bool:
    try:
        ip_interface(address)
    except ValueError:
        return False
    return "/" in address


def _can_be(route: Route) -> bool:
    """Whether a route has a destination, and a gateway of the same family if any."""
    try:
        version = ip_network(route.destination).version
        return not route.gateway or ip_address(route.gateway).version == version
    except ValueError:
        return False


def _is_dns(dns: DnsConfig) -> bool:
    """Whether a resolver, and the configuration that names its servers, can read it."""
    try:
        for server in dns.servers:
            ip_address(server)
    except ValueError:
        return False
    return all(map(_WORD.fullmatch, dns.searches))
