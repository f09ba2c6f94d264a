"""What a plugin's network may be, and what an adjustment may make of it."""

import re
from ipaddress import ip_address, ip_interface, ip_network

from virtlet.model.network import Network, Nic

_UNICAST_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")


def problem(network: Network) -> str:
    """What its plugin did that nobody could work with, as a clause for a message; or ""."""
    for number, nic in enumerate(network.nics):
        flaw = _flaw_of(nic)
        if flaw:
            return f"returned a Network whose nics[{number}].{flaw}"
    if len({nic.mac for nic in network.nics}) < len(network.nics):
        return "returned a Network whose nics have one MAC address twice"
    return ""


def problem_of_adjustment(before: Network, after: Network) -> str:
    """The same of a plugin that made the second network of the first."""
    changed = _changed(before, after)
    if changed:
        return f"changed {changed}, which is left to the plugin that made the network"
    return problem(after)


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
    for name, least in (("mtu", 68), ("queues", 1), ("boot_order", 0)):
        if getattr(nic, name) < least:
            return f"{name} is below {least}"
    try:
        for address in nic.addresses:
            ip_interface(address)
    except ValueError:
        return "addresses has one that is not in CIDR form"
    try:
        for route in nic.routes:
            ip_network(route.destination)
            if route.gateway:
                ip_address(route.gateway)
    except ValueError:
        return "routes has one whose destination or gateway cannot be"
    return ""
