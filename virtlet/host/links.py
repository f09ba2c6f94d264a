"""Network interfaces, addresses and routes, by pyroute2; and the far ends of taps.

Everything here acts on the network namespace of the calling thread (see `netns.inside`).
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import frozen

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.model.typed import typed

_MAIN_TABLE = 254  # RT_TABLE_MAIN
_UNICAST = 1  # RTN_UNICAST
_GLOBAL = 0  # RT_SCOPE_UNIVERSE
_BY_ITSELF = (2, 9)  # RTPROT_KERNEL, RTPROT_RA
_ONLINK = 4  # RTNH_F_ONLINK
_LINK_SCOPE = 253  # RT_SCOPE_LINK
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NODAD = 0x02  # IFA_F_NODAD
_PERMANENT = 0x80  # NUD_PERMANENT
_STATIC = 0x40  # NUD_NOARP, in a bridge's table: neither learned nor the bridge's own
_OF_THE_BRIDGE = 0x04  # NTF_MASTER
_NO_PREFIX_ROUTE = 0x200  # IFA_F_NOPREFIXROUTE
_WITH_FUNCTIONS = 1  # RTEXT_FILTER_VF
_MAC_CHARACTERS = len("00:00:00:00:00:00")
_LONGEST_NAME = 15  # IFNAMSIZ - 1
_FLAGS = {
    "UP": 0x1,
    "BROADCAST": 0x2,
    "LOOPBACK": 0x8,
    "POINTOPOINT": 0x10,
    "NOARP": 0x80,
    "PROMISC": 0x100,
    "MULTICAST": 0x1000,
    "LOWER_UP": 0x10000,
}
"""Source: linux/if.h."""

# From <linux/if_tun.h>.
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_PASSING = 2.0
"""Seconds for which a tap may be held by a process that is only being started."""


class LinkError(VirtletError):
    """The kernel refuses a change of the network.

    Args:
        what: was to be done, on what.
        number: the kernel's reason, as in the standard library's `errno`.
        reason: in words.
    """

    errno: int

    def __init__(self, what: str, number: int, reason: str) -> None:
        super().__init__(f"cannot {what}: {reason}")
        self.errno = number


@frozen(kw_only=True, field_transformer=typed)
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
    pci: str = ""
    """PCI address of its hardware; "" where it has none."""
    alias: str = ""
    """What somebody noted on it for people, or for a program of theirs."""


@frozen(kw_only=True, field_transformer=typed)
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
    mtu: int = 0
    """Bytes; 0 for that of the interface."""


@frozen(kw_only=True, field_transformer=typed)
class Neighbour:
    """A permanent entry of a table of neighbours: an address that is not asked for."""

    device: str
    address: str
    mac: str


class Links:
    """The interfaces of the calling thread's network namespace: a context manager.

    It must be used on the thread that made it. Every method raises LinkError where the kernel
    refuses, or where it is given what cannot be.
    """

    def __init__(self) -> None:
        # Takes 0.15 s and 8 MB, which a manager without pods can do without.
        from pyroute2 import IPRoute

        with _told("ask the kernel about interfaces"):
            self._route: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the netlink socket."""
        self._route.close()

    # What is there

    def show(self) -> tuple[Link, ...]:
        """All interfaces with their addresses, in the order of the kernel's numbers."""
        addresses: dict[int, list[str]] = {}
        with _told("list the interfaces"):
            found = list(self._route.get_addr())
            entries = sorted(self._route.get_links(), key=lambda entry: int(entry["index"]))
        for entry in found:
            local = entry.get("IFA_LOCAL") or entry.get("IFA_ADDRESS")
            if entry["scope"] == _GLOBAL and local:
                addresses.setdefault(entry["index"], []).append(f"{local}/{entry['prefixlen']}")
        return tuple(_link(entry, tuple(addresses.get(entry["index"], ()))) for entry in entries)

    def routes(self) -> tuple[KernelRoute, ...]:
        """The main table's routes, IPv4 first.

        Left out are routes over several gateways, to nowhere, or by a gateway of the other family.
        """
        names = dict(socket.if_nameindex())
        found = []
        for version, family in _FAMILIES.items():
            with _told("list the routes"):
                entries = list(self._route.get_routes(family=family, table=_MAIN_TABLE))
            for entry in entries:
                device = names.get(entry.get("RTA_OIF"))
                # Asked for a family that it lacks, as IPv6 on some nodes, the kernel tells of all.
                wanted = entry["family"] == family and entry["type"] == _UNICAST
                if wanted and device and not entry.get("RTA_VIA"):
                    found.append(_route(entry, version, device))
        return tuple(found)

    def neighbours(self) -> tuple[Neighbour, ...]:
        """The permanent neighbours, IPv4 first."""
        names = dict(socket.if_nameindex())
        found = []
        for family in _FAMILIES.values():
            with _told("list the neighbours"):
                entries = list(self._route.get_neighbours(family=family))
            for entry in entries:
                device, mac = names.get(entry["ifindex"]), entry.get("NDA_LLADDR")
                if entry["family"] == family and entry["state"] & _PERMANENT and device and mac:
                    address = entry.get("NDA_DST")
                    found.append(Neighbour(device=device, address=address, mac=mac))
        return tuple(found)

    # Changes

    def add_bridge(self, name: str, *, mac: str = "", mtu: int = 0) -> None:
        """Make a bridge that forwards at once: no spanning tree, no multicast snooping. It is down.

        Args:
            name: its name, at most 15 bytes.
            mac: its address; "" lets the kernel choose.
            mtu: bytes; 0 lets the kernel choose.
        """
        options: dict[str, Any] = dict.fromkeys(
            ("br_stp_state", "br_forward_delay", "br_mcast_snooping"), 0
        )
        if mac:
            options["address"] = mac
        if mtu:
            options["mtu"] = mtu
        with _told(f"make the bridge {name}"):
            _check_name(name)
            self._route.link("add", ifname=name, kind="bridge", **options)

    def add_tap(self, name: str, *, multi_queue: bool = False) -> None:
        """Make a tap whose far end `open_tap` opens, as QEMU uses it: virtio's headers. It is down.

        Args:
            name: its name, at most 15 bytes.
            multi_queue: whether it may be opened several times, once for each queue.
        """
        flags = {"no_pi": 1, "vnet_hdr": 1, "multi_queue": int(multi_queue)}
        with _told(f"make the tap {name}"):
            _check_name(name)
            self._route.link("add", ifname=name, kind="tuntap", mode="tap", ifr=flags)

    def add_veth(self, name: str, peer: str) -> None:
        """Make a pair of interfaces: what one is sent comes out of the other. They are down."""
        with _told(f"make the pair {name} and {peer}"):
            _check_name(name)
            _check_name(peer)
            self._route.link("add", ifname=name, kind="veth", peer={"ifname": peer})

    def set(
        self,
        name: str,
        *,
        up: bool | None = None,
        mac: str = "",
        mtu: int = 0,
        master: str | None = None,
        learning: bool | None = None,
        answered: bool | None = None,
        all_multicast: bool | None = None,
        alias: str = "",
    ) -> None:
        """Change an interface; what is not named stays.

        Args:
            name: the interface.
            up: whether it is up.
            mac: its address.
            mtu: bytes.
            master: the bridge whose port it is; "" for none.
            learning: whether its bridge learns addresses from it; it must be a port.
            answered: whether its bridge answers the other ports for the neighbours behind it that
                are in the bridge's own table; it must be a port.
            all_multicast: whether it takes frames to all multicast groups.
            alias: what is noted on it.
        """
        changes: dict[str, Any] = {}
        if mac:
            changes["address"] = mac
        if mtu:
            changes["mtu"] = mtu
        if master is not None:
            changes["master"] = _index(master) if master else 0
        if up is not None:
            changes["state"] = "up" if up else "down"
        if all_multicast is not None:
            changes["allmulticast"] = all_multicast
        if alias:
            changes["ifalias"] = alias
        with _told(f"change {name}"):
            index = _index(name)
            if changes:
                self._route.link("set", index=index, **changes)
            if learning is not None:
                self._route.brport("set", index=index, learning=int(learning))
            if answered is not None:
                self._route.brport("set", index=index, neigh_suppress=int(answered))

    def move(self, name: str, path: Path, new_name: str) -> None:
        """Put an interface into another network namespace, by another name. It is down there.

        Args:
            name: the interface.
            path: the namespace's file.
            new_name: its name there, at most 15 bytes.
        """
        with _told(f"move {name} to {path} as {new_name}"):
            _check_name(new_name)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                index = _index(name)
                self._route.link("set", index=index, state="down")
                self._route.link("set", index=index, net_ns_fd=descriptor, ifname=new_name)
            finally:
                os.close(descriptor)

    def function_macs(self, name: str) -> dict[int, str]:
        """The MAC addresses that a physical function has for its virtual functions, by number."""
        with _told(f"ask {name} for its virtual functions"):
            (entry,) = self._route.get_links(_index(name), ext_mask=_WITH_FUNCTIONS)
            listed = entry.get("IFLA_VFINFO_LIST")
            found = [
                info.get("IFLA_VF_MAC")
                for info in (listed.get_attrs("IFLA_VF_INFO") if listed else ())
            ]
        return {said["vf"]: str(said["mac"])[:_MAC_CHARACTERS] for said in found if said}

    def set_function_mac(self, name: str, number: int, mac: str) -> None:
        """Have a physical function give one of its virtual functions a MAC address."""
        with _told(f"give virtual function {number} of {name} the MAC address {mac}"):
            self._route.link("set", index=_index(name), vf={"vf": number, "mac": mac})

    def delete(self, name: str) -> None:
        """Remove an interface; idempotent."""
        try:
            with _told(f"delete {name}"):
                self._route.link("del", index=_index(name))
        except LinkError as error:
            if error.errno != errno.ENODEV:  # gone, by now at least
                raise

    def add_address(
        self, name: str, address: str, *, dad: bool = True, prefix_route: bool = True
    ) -> None:
        """Give an interface an address, if it has not got it.

        Args:
            name: the interface.
            address: in CIDR form.
            dad: whether IPv6 first sees that nobody else has it.
            prefix_route: whether the kernel makes a route to its network.
        """
        flags = (0 if dad else _NODAD) | (0 if prefix_route else _NO_PREFIX_ROUTE)
        with _told(f"give {name} the address {address}"):
            parsed = ip_interface(address)
            self._route.addr(
                "replace",
                index=_index(name),
                address=str(parsed.ip),
                prefixlen=parsed.network.prefixlen,
                family=_FAMILIES[parsed.version],
                **({"flags": flags} if flags else {}),
            )

    def flush_addresses(self, name: str) -> None:
        """Take all its addresses away from an interface."""
        with _told(f"take the addresses of {name} away"):
            for entry in list(self._route.get_addr(index=_index(name))):
                address = entry.get("IFA_LOCAL") or entry.get("IFA_ADDRESS")
                try:
                    self._route.addr(
                        "del",
                        index=entry["index"],
                        address=address,
                        prefixlen=entry["prefixlen"],
                        family=entry["family"],
                    )
                except _netlink_error() as error:
                    # It went with the first address of its network.
                    if _number(error) != errno.EADDRNOTAVAIL:
                        raise

    def set_route(
        self,
        destination: str,
        device: str,
        *,
        gateway: str = "",
        metric: int = 0,
        onlink: bool = False,
        mtu: int = 0,
    ) -> None:
        """Add a route to the main table, or replace the one to the same destination and metric.

        Args:
            destination: in CIDR form, or an address.
            device: the interface.
            gateway: address; "" for a destination on the link.
            metric: 0 leaves it to the kernel.
            onlink: whether the gateway is taken to be on the link.
            mtu: bytes; 0 for that of the interface.
        """
        with _told(f"set the route to {destination} over {device}"):
            network = ip_network(destination, strict=False)
            entry: dict[str, Any] = {"dst": str(network), "family": _FAMILIES[network.version]}
            if gateway:
                entry["gateway"] = gateway
            else:
                entry["scope"] = _LINK_SCOPE if network.version == 4 else _GLOBAL
            if metric:
                entry["priority"] = metric
            if onlink:
                entry["flags"] = _ONLINK
            if mtu:
                entry["metrics"] = {"mtu": mtu}
            self._route.route("replace", oif=_index(device), table=_MAIN_TABLE, **entry)

    def set_neighbour(self, device: str, address: str, mac: str) -> None:
        """Add a permanent neighbour, or replace that of its address."""
        with _told(f"tell {device} of its neighbour {address}"):
            self._route.neigh(
                "replace",
                ifindex=_index(device),
                family=_FAMILIES[ip_address(address).version],
                dst=address,
                lladdr=mac,
                state=_PERMANENT,
            )

    def set_behind(self, port: str, mac: str) -> None:
        """Tell a bridge that a MAC address is behind one of its ports."""
        with _told(f"tell the bridge of {port} that {mac} is behind it"):
            self._route.fdb(
                "replace", ifindex=_index(port), lladdr=mac, state=_STATIC, flags=_OF_THE_BRIDGE
            )


def set_sysctl(name: str, value: str) -> bool:
    """Set a `net.…` setting, path form (`ipv4/ip_forward`); False if the kernel lacks it."""
    try:
        Path("/proc/sys/net", name).write_text(value)
    except OSError:
        return False
    return True


def open_tap(name: str, *, multi_queue: bool = False) -> int:
    """Open the far end of a tap of the calling thread's network namespace.

    The tap must have been made with `vnet_hdr` and without `pi`, as QEMU uses it. Only one
    descriptor can be open at a time, or one for each queue where it was made with `multi_queue`.

    Returns:
        A descriptor, closed on exec, that the caller owns.

    A process that another thread starts has copies of our descriptors until its program runs, so
    that a tap closed a moment ago may still be held: it is tried again for two seconds.

    Raises:
        FailedPrecondition: there is no such tap, or another process holds it.
    """
    try:
        socket.if_nametoindex(name)
    except OSError:  # TUNSETIFF would make a new one
        raise FailedPrecondition(f"cannot open tap {name}: there is none of that name") from None
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FailedPrecondition(f"cannot open tap {name}: {error.strerror}") from None
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    request = struct.pack("16sH22x", name.encode(), flags)
    deadline = time.monotonic() + _PASSING
    while True:
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        except OSError as error:
            busy = error.errno == errno.EBUSY
            if busy and time.monotonic() < deadline:
                time.sleep(0.005)
                continue
            os.close(descriptor)
            reason = "another process holds it" if busy else error.strerror
            raise FailedPrecondition(f"cannot open tap {name}: {reason}") from None
        return descriptor


def _netlink_error() -> type[Exception]:
    from pyroute2.netlink.exceptions import NetlinkError

    kind: type[Exception] = NetlinkError
    return kind


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):
        raise LinkError(f"find {name}", errno.ENODEV, "there is no such interface") from None


def _check_name(name: str) -> None:
    """Refuse what the kernel would cut off, or refuse in words that nobody understands."""
    if not 1 <= len(os.fsencode(name)) <= _LONGEST_NAME or "\0" in name:
        problem = f"the name of an interface has 1 to {_LONGEST_NAME} bytes, none of them NUL"
        raise LinkError(f"take the name {name!r}", errno.EINVAL, problem)


def _number(error: Exception) -> int:
    """The kernel's number of an error of the library or the system; 0 where it has none."""
    return getattr(error, "code", 0) or getattr(error, "errno", 0) or 0


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Make the library's errors ours."""
    try:
        yield
    except LinkError as error:
        raise LinkError(what, error.errno, str(error)) from None
    except (_netlink_error(), OSError) as error:
        number = _number(error)
        raise LinkError(what, number, os.strerror(number) if number else str(error)) from None
    except (ValueError, struct.error) as error:
        raise LinkError(what, errno.EINVAL, f"it is given what cannot be ({error})") from None


def _link(entry: Any, addresses: tuple[str, ...]) -> Link:
    info = entry.get("IFLA_LINKINFO")
    by_pci = entry.get("IFLA_PARENT_DEV_BUS_NAME") == "pci"
    return Link(
        name=entry.get("IFLA_IFNAME"),
        kind=(info.get("IFLA_INFO_KIND") if info else None) or "",
        mac=entry.get("IFLA_ADDRESS") or "",
        mtu=entry.get("IFLA_MTU"),
        flags=frozenset(name for name, bit in _FLAGS.items() if entry["flags"] & bit),
        addresses=addresses,
        pci=(entry.get("IFLA_PARENT_DEV_NAME") or "") if by_pci else "",
        alias=entry.get("IFLA_IFALIAS") or "",
    )


def _route(entry: Any, family: int, device: str) -> KernelRoute:
    network = entry.get("RTA_DST") or ("0.0.0.0" if family == 4 else "::")
    metrics = entry.get("RTA_METRICS")
    return KernelRoute(
        destination=f"{network}/{entry['dst_len']}",
        device=device,
        gateway=entry.get("RTA_GATEWAY") or "",
        metric=entry.get("RTA_PRIORITY") or 0,
        automatic=entry["proto"] in _BY_ITSELF,
        mtu=(metrics.get("RTAX_MTU") if metrics else None) or 0,
    )
