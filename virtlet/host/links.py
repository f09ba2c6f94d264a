"""Network interfaces, addresses and routes, by the `ip` program of iproute2.

All functions act on the network namespace of the calling thread (see `netns.inside`). `ip` is
one process of 3 ms for any number of changes and keeps no memory here.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.commands import run


@frozen
class Link:
    """A network interface."""

    name: str
    kind: str
    """As in `ip link add … type KIND`: veth, bridge, …; "" for hardware and loopback."""
    mac: str
    """Lower case with colons; "" where the interface has none."""
    mtu: int
    flags: frozenset[str]
    """LOOPBACK, UP, LOWER_UP, …"""
    addresses: tuple[str, ...]
    """CIDR form, global scope only."""


@frozen
class KernelRoute:
    """A unicast route of the main table."""

    destination: str
    """CIDR form."""
    device: str
    gateway: str
    """"" for a destination on the link."""
    metric: int
    """0 when unset."""
    automatic: bool
    """True when the kernel made it, for an address of the interface."""


_ROUTES = "route show table main"


def _ip() -> str:
    path = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if path is None:
        raise FailedPrecondition("the program ip is missing on this node: install iproute2")
    return path


def change(commands: Iterable[str], *, carry_on: bool = False) -> None:
    """Make changes in order, each an `ip` command line without the word `ip`.

    Args:
        commands: e.g. `link set eth0 up`.
        carry_on: make the later changes although an earlier one fails.

    Raises:
        CommandError: a change failed (with `carry_on`, after all were tried).
    """
    script = "".join(f"{command}\n" for command in commands)
    force = ("-force",) if carry_on else ()
    if script:
        run((_ip(), *force, "-batch", "-"), stdin=script.encode(), timeout=10)


def show() -> tuple[Link, ...]:
    """All interfaces with their addresses."""
    (found,) = _ask("address show")
    return tuple(map(_link, found))


def show_with_routes() -> tuple[tuple[Link, ...], tuple[KernelRoute, ...]]:
    """All interfaces, and the main table's routes for the families they have addresses of.

    Left out are routes over several gateways, to nowhere, or by a gateway of the other family.
    """
    addresses, routes = _ask("address show", _ROUTES)
    found = tuple(map(_link, addresses))
    known = _routes(routes, 4)
    if any(":" in address for link in found for address in link.addresses):
        (routes,) = _ask(_ROUTES, family="-6")
        known += _routes(routes, 6)
    return found, known


def set_sysctl(name: str, value: str) -> bool:
    """Set a `net.…` setting, path form (`ipv4/ip_forward`); False if the kernel lacks it."""
    try:
        Path("/proc/sys/net", name).write_text(value)
    except OSError:
        return False
    return True


def _ask(*questions: str, family: str = "") -> Iterator[list[dict[str, Any]]]:
    """The entries that each question is answered with, by one process.

    Without a family, addresses are of both, and routes of IPv4.
    """
    script = "".join(f"{question}\n" for question in questions).encode()
    options = (family,) if family else ()
    output = run((_ip(), *options, "-json", "-details", "-batch", "-"), stdin=script, timeout=10)
    for answer in output.splitlines():
        yield [entry for entry in json.loads(answer) if entry]


def _link(entry: dict[str, Any]) -> Link:
    return Link(
        name=entry["ifname"],
        kind=entry.get("linkinfo", {}).get("info_kind", ""),
        mac=entry.get("address", ""),
        mtu=entry["mtu"],
        flags=frozenset(entry["flags"]),
        addresses=tuple(
            f"{address['local']}/{address['prefixlen']}"
            for address in entry["addr_info"]
            if address.get("scope") == "global" and "local" in address
        ),
    )


def _routes(entries: Iterable[dict[str, Any]], family: int) -> tuple[KernelRoute, ...]:
    return tuple(
        _route(entry, family)
        for entry in entries
        if entry.get("type", "unicast") == "unicast" and "dev" in entry and "via" not in entry
    )


def _route(entry: dict[str, Any], family: int) -> KernelRoute:
    destination = entry["dst"]
    if destination == "default":
        destination = "0.0.0.0/0" if family == 4 else "::/0"
    elif "/" not in destination:
        destination += "/32" if family == 4 else "/128"
    return KernelRoute(
        destination=destination,
        device=entry["dev"],
        gateway=entry.get("gateway", ""),
        metric=entry.get("metric", 0),
        automatic=entry.get("protocol") in ("kernel", "ra"),
    )
