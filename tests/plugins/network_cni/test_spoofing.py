"""What a guest may send, by frames through the tap of a pod's namespace."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.host import netns
from virtlet.host.links import Links, open_tap
from virtlet.model.pod import Profile
from virtlet.plugins.network_cni import bridging
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_config import parse

MAC, OTHER_MAC = "0a:58:0a:63:00:02", "0a:58:0a:63:00:03"
IP, OTHER_IP = "10.99.0.2", "10.99.0.1"
IP6, OTHER_IP6 = "fd00:99::2", "fd00:99::1"
LINK_LOCAL, OTHER_LINK_LOCAL = "fe80::858:aff:fe63:2", "fe80::1"
EVERYBODY, EVERYBODY6 = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
VNET_HEADER = bytes(10)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(kind: int, payload: bytes, source: str = MAC, to: str = EVERYBODY) -> bytes:
    frame = _mac(to) + _mac(source) + struct.pack("!H", kind) + payload
    return frame.ljust(60, b"\0")


def arp(ip: str, mac: str = MAC, *, reply: bool = False, source: str = MAC) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x800, 6, 4, 2 if reply else 1)
    target = bytes(6) + ip_address("10.99.0.9").packed
    return ether(0x806, head + _mac(mac) + ip_address(ip).packed + target, source)


def ipv4(ip: str, source: str = MAC, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    datagram = struct.pack("!HHHH", *ports, 8, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
    addresses = ip_address(ip).packed + ip_address("10.99.0.9").packed
    return ether(0x800, head + addresses + datagram, source)


def ipv6(ip: str, payload: bytes = bytes(8), following: int = 17, source: str = MAC) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
    addresses = ip_address(ip).packed + ip_address("ff02::1").packed
    return ether(0x86DD, head + addresses + payload, source, EVERYBODY6)


def neighbour(ip: str, kind: int, target: str, *, behind_options: bool = False) -> bytes:
    """A solicitation (135) or advertisement (136)."""
    message = struct.pack("!BBHI", kind, 0, 0, 0) + ip_address(target).packed
    if behind_options:
        return ipv6(ip, bytes((58, 0, 1, 4, 0, 0, 0, 0)) + message, 60)
    return ipv6(ip, message, 58)


def tagged(frame: bytes) -> bytes:
    return frame[:12] + struct.pack("!HH", 0x8100, 7) + frame[12:]


OWN = {
    "ipv4": ipv4(IP),
    "arp": arp(IP),
    "arp reply": arp(IP, reply=True),
    "arp probe": arp("0.0.0.0"),
    "ipv6": ipv6(IP6),
    "link-local": ipv6(LINK_LOCAL),
    "advertisement": neighbour(IP6, 136, IP6),
    "advertisement of link-local": neighbour(LINK_LOCAL, 136, LINK_LOCAL),
    "solicitation": neighbour(IP6, 135, OTHER_IP6),
    "detection of duplicates": neighbour("::", 135, IP6),
    "detection of link-local duplicates": neighbour("::", 135, LINK_LOCAL),
    "multicast report": ipv6("::", struct.pack("!BBHHH", 143, 0, 0, 0, 0), 58),
}
SPOOFED = {
    "mac": ipv4(IP, OTHER_MAC),
    "mac of ipv6": ipv6(IP6, source=OTHER_MAC),
    "mac of arp's frame": arp(IP, source=OTHER_MAC),
    "ipv4": ipv4(OTHER_IP),
    "ipv4 from nowhere": ipv4("0.0.0.0"),
    "arp": arp(OTHER_IP),
    "arp reply": arp(OTHER_IP, reply=True),
    "arp reply from nowhere": arp("0.0.0.0", reply=True),
    "mac in arp": arp(IP, OTHER_MAC),
    "mac in an arp probe": arp("0.0.0.0", OTHER_MAC),
    "ipv6": ipv6(OTHER_IP6),
    "ipv6 from nowhere": ipv6("::"),
    "link-local": ipv6(OTHER_LINK_LOCAL),
    "advertisement": neighbour(IP6, 136, OTHER_IP6),
    "advertisement of link-local": neighbour(IP6, 136, OTHER_LINK_LOCAL),
    "advertisement behind options": neighbour(IP6, 136, OTHER_LINK_LOCAL, behind_options=True),
    "detection of duplicates": neighbour("::", 135, OTHER_IP6),
    "detection of link-local duplicates": neighbour("::", 135, OTHER_LINK_LOCAL),
    "another protocol": ether(0x88B5, bytes(46)),
    "reverse arp": ether(0x8035, arp(IP)[14:]),
    "tagged ipv4": tagged(ipv4(OTHER_IP)),
    "twice tagged ipv4": tagged(tagged(ipv4(IP))),
}


@frozen
class Wire:
    """A guest's tap, and the far end of its pod's veth."""

    _tap: int
    _outside: socket.socket

    def passes(self, frame: bytes) -> bool:
        """Whether a frame of the guest leaves the pod; an allowed one comes behind it."""
        last = ipv4(IP, ports=(1, int.from_bytes(os.urandom(2), "big")))
        for each in (frame, last):
            os.write(self._tap, VNET_HEADER + each)
        seen = b""
        found = False
        while seen != last:
            seen, (_, _, direction, *_) = self._outside.recvfrom(2048)
            incoming = direction != socket.PACKET_OUTGOING
            # The kernel takes an outer tag off before it shows the frame.
            found |= incoming and seen in (frame, frame[:12] + frame[16:])
        return found


@frozen
class Guests:
    """Guests that are attached in one way."""

    held: Wire
    """It may send from its own addresses."""
    free: Wire
    """It has no filter."""
    without_address: Wire
    """It is in a network without addresses of its own."""


def nic(*addresses: str, redirected: bool = False) -> BridgedNic:
    return BridgedNic(
        index=0,
        veth="eth0",
        mac=MAC,
        mtu=1500,
        addresses=(),
        routes=(),
        guest_addresses=addresses,
        guest_routes6=(),
        server="169.254.77.1",
        guest_mac=MAC,
        redirected=redirected,
    )


@contextmanager
def _wire(directory: Path, guest: BridgedNic, **options: Any) -> Iterator[Wire]:
    directory.mkdir()
    path = directory / "pod.netns"
    netns.create(path)
    opened: list[tuple[int, socket.socket]] = []

    def connect() -> None:
        with Links() as net:
            net.add_veth("eth0", "outside")
            net.set("eth0", mac=MAC, up=True)
            net.set("outside", up=True)
        bridging.connect([guest], **options)
        outside = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        outside.bind(("outside", 0))
        outside.settimeout(20)
        opened.append((open_tap("vtap0"), outside))

    try:
        netns.inside(path, connect)
        for tap, outside in opened:
            yield Wire(tap, outside)
            os.close(tap)
            outside.close()
    finally:
        netns.delete(path)


@pytest.fixture(scope="module", params=["bridged", "redirected"])
def guests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guests]:
    directory = tmp_path_factory.mktemp("guests")
    redirected = request.param == "redirected"
    own, bare = nic(IP, IP6, redirected=redirected), nic(redirected=redirected)
    with (
        _wire(directory / "held", own) as held,
        _wire(directory / "free", own, spoofing=True) as free,
        _wire(directory / "bare", bare) as without_address,
    ):
        yield Guests(held, free, without_address)


@pytest.mark.parametrize("frame", OWN.values(), ids=OWN)
def test_a_guest_sends_from_its_own_addresses(guests: Guests, frame: bytes) -> None:
    assert guests.held.passes(frame)


@pytest.mark.parametrize("frame", SPOOFED.values(), ids=SPOOFED)
def test_a_guest_sends_from_no_others(guests: Guests, frame: bytes) -> None:
    assert not guests.held.passes(frame)
    # It is the filter that keeps it back.
    assert guests.free.passes(frame)


def test_a_nic_that_cni_gave_no_address_is_held_to_its_mac(guests: Guests) -> None:
    for name in ("ipv4", "ipv6", "arp", "another protocol", "link-local"):
        assert guests.without_address.passes(SPOOFED[name]), name
    for name in ("mac", "mac of ipv6", "mac of arp's frame", "mac in arp"):
        assert not guests.without_address.passes(SPOOFED[name]), name


@pytest.mark.parametrize(
    ("flavor", "network", "spoofs"),
    [
        ({}, {}, False),
        ({"extras": {"spoofing": "allow"}}, {}, True),
        ({"extras": {"spoofing": "deny"}}, {}, False),
        ({}, {"virtletAllowSpoofing": True}, True),
    ],
)
def test_flavor_and_network_may_allow_it_and_a_pod_may_not(
    node: TestNode, flavor: dict[str, Any], network: dict[str, Any], *, spoofs: bool
) -> None:
    node.configure(node.bridge(), **network)
    plugin = node.plugin()
    pod = node.pod(annotations={"VirtletSpoofing": "allow", "spoofing": "allow"})
    pod = evolve(pod, profile=Profile(flavor=flavor))
    made = set_up(plugin, pod)
    with node.guest(made) as guest:
        assert guest.dhcp()
        assert guest.reaches(OTHER_IP)
        guest.run("ip", "address", "add", "10.99.0.77/24", "dev", "eth0")
        pinged = guest.run("busybox", "ping", "-I", "10.99.0.77", "-c", "1", "-W", "2", OTHER_IP)
        assert (pinged.returncode == 0) == spoofs
    plugin.virtlet_teardown_network(pod, made)
    assert node.leftovers() == []


def test_the_networks_word_must_be_true_or_false() -> None:
    document = {"cniVersion": "1.0.0", "name": "a", "type": "bridge"}
    assert not parse(document).allow_spoofing
    with pytest.raises(ValueError, match="virtletAllowSpoofing must be true or false"):
        parse({**document, "virtletAllowSpoofing": "maybe"})
