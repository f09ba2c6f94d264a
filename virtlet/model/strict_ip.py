"""IP addresses out of texts that others write, as they may stand in configuration and commands.

Python's own functions take any text after a `%` for the name of an interface, line ends included.
"""

import ipaddress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)


def ip_address(text: str) -> IPv4Address | IPv6Address:
    """An address of one family and of no interface.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(_without_scope(text))
    _refuse_mapped(address)
    return address


def ip_interface(text: str) -> IPv4Interface | IPv6Interface:
    """An address with the length of its prefix, a single host's where it has none.

    Raises:
        ValueError: it is none.
    """
    interface = ipaddress.ip_interface(_without_scope(text))
    _refuse_mapped(interface)
    return interface


def ip_network(text: str, *, strict: bool = True) -> IPv4Network | IPv6Network:
    """A network in CIDR form.

    Args:
        text: the network.
        strict: whether an address within it is refused.

    Raises:
        ValueError: it is none.
    """
    network = ipaddress.ip_network(_without_scope(text), strict=strict)
    _refuse_mapped(network.network_address)
    return network


def _without_scope(text: str) -> str:
    if "%" in text or not text.isascii() or not text.isprintable():
        raise ValueError("an address names no interface and has no special characters")
    return text


def _refuse_mapped(address: IPv4Address | IPv6Address) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError("an IPv4 address is written in IPv6's form")
