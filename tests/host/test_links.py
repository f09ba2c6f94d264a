"""Interfaces, addresses, routes and taps."""

import errno
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyroute2
import pytest

from virtlet.errors import FailedPrecondition
from virtlet.host import netns
from virtlet.host.links import KernelRoute, Link, LinkError, Links, open_tap, set_sysctl


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns"
    netns.create(path)
    yield path
    netns.delete(path)


def kernel_route(
    destination: str, device: str, gateway: str, metric: int, *, automatic: bool
) -> KernelRoute:
    return KernelRoute(
        destination=destination, device=device, gateway=gateway, metric=metric, automatic=automatic
    )


def test_links_and_routes(namespace: Path) -> None:
    """What is made is shown: kinds, addresses of global scope, routes with and without gateway."""

    def make() -> tuple[tuple[Link, ...], tuple[KernelRoute, ...]]:
        with Links() as net:
            net.add_veth("one", "other")
            net.set("one", mac="02:00:00:00:00:0a", mtu=1400, up=True)
            net.set("other", up=True)
            net.add_address("one", "10.0.0.2/24")
            net.add_address("one", "fd00::2/64", dad=False)
            net.set_route("0.0.0.0/0", "one", gateway="10.0.0.1", metric=5)
            net.set_route("192.0.2.1", "one")
            net.set_route("fd01::/16", "one", gateway="fd00::1")
            net.set_route("fd02::/16", "one", gateway="fe80::1", onlink=True)
            subprocess.run(("ip", "route", "add", "blackhole", "198.51.100.0/24"), check=True)
            return net.show(), net.routes()

    shown, routes = netns.inside(namespace, make)
    found = {link.name: link for link in shown}
    assert found["one"].kind == "veth"
    assert (found["one"].mac, found["one"].mtu) == ("02:00:00:00:00:0a", 1400)
    assert {"UP", "LOWER_UP"} <= found["one"].flags
    assert found["one"].addresses == ("10.0.0.2/24", "fd00::2/64")
    assert found["other"].addresses == ()
    assert {route for route in routes if ":" not in route.destination} == {
        kernel_route("0.0.0.0/0", "one", "10.0.0.1", 5, automatic=False),
        kernel_route("192.0.2.1/32", "one", "", 0, automatic=False),
        kernel_route("10.0.0.0/24", "one", "", 0, automatic=True),
    }
    assert kernel_route("fd01::/16", "one", "fd00::1", 1024, automatic=False) in routes
    assert kernel_route("fd02::/16", "one", "fe80::1", 1024, automatic=False) in routes


def test_a_bridge_and_its_port(namespace: Path) -> None:
    """A bridge forwards at once, a tap is its port and learns nothing, and both go away."""

    def make() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        with Links() as net:
            net.add_bridge("br0", mac="02:00:00:00:00:0b", mtu=1400)
            net.add_tap("tap0")
            net.set("tap0", mtu=1400, master="br0", up=True, learning=False)
            told = subprocess.run(
                ("ip", "-json", "-details", "link", "show"), check=True, capture_output=True
            )
            entries = {entry["ifname"]: entry for entry in json.loads(told.stdout)}
            net.set("tap0", master="")
            for _ in range(2):
                net.delete("tap0")
            return entries["br0"], entries["tap0"], [link.name for link in net.show()]

    bridge, tap, left = netns.inside(namespace, make)
    assert (bridge["address"], bridge["mtu"]) == ("02:00:00:00:00:0b", 1400)
    about = bridge["linkinfo"]["info_data"]
    assert (about["stp_state"], about["forward_delay"], about["mcast_snooping"]) == (0, 0, 0)
    assert (tap["master"], tap["mtu"]) == ("br0", 1400)
    assert tap["linkinfo"]["info_data"] == {
        "type": "tap", "pi": False, "vnet_hdr": True, "multi_queue": False, "persist": True,
    }  # fmt: skip
    assert tap["linkinfo"]["info_slave_data"]["learning"] is False
    assert left == ["lo", "br0"]


def test_addresses_are_taken_away(namespace: Path) -> None:
    """All of them, with those that the kernel takes away with the first of their network."""

    def flush() -> list[tuple[str, ...]]:
        with Links() as net:
            net.add_bridge("br0")
            for address in ("10.0.0.2/24", "10.0.0.3/24", "10.0.0.3/24", "fd00::2/64"):
                net.add_address("br0", address, dad=False, prefix_route=False)
            before = net.show()[-1].addresses
            net.flush_addresses("br0")
            return [before, net.show()[-1].addresses]

    assert netns.inside(namespace, flush) == [("10.0.0.2/24", "10.0.0.3/24", "fd00::2/64"), ()]


@pytest.mark.parametrize(
    ("change", "number", "words"),
    [
        (lambda net: net.set("nowhere", up=True), errno.ENODEV, "cannot change nowhere"),
        (lambda net: net.add_bridge("lo"), errno.EEXIST, "cannot make the bridge lo: File exists"),
        (lambda net: net.set("lo", learning=False), errno.EOPNOTSUPP, "cannot change lo"),
        (
            lambda net: net.set_route("10.9.0.0/16", "lo", gateway="172.16.0.1"),
            errno.ENETUNREACH,
            "cannot set the route to 10.9.0.0/16 over lo: Network is unreachable",
        ),
    ],
)
def test_a_change_that_the_kernel_refuses_says_which_and_why(
    namespace: Path, change: Callable[[Links], None], number: int, words: str
) -> None:
    """By the kernel's number, and in words."""

    def attempt() -> None:
        with Links() as net:
            change(net)

    with pytest.raises(LinkError, match=words) as told:
        netns.inside(namespace, attempt)
    assert told.value.errno == number


def test_routes_where_the_kernel_lacks_ipv6(
    namespace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv4's routes are not told as IPv6's, although the kernel answers with them."""

    made = pyroute2.IPRoute

    class WithoutIPv6:
        def __init__(self) -> None:
            self._route = made()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._route, name)

        def get_routes(self, family: int, table: int) -> Any:
            """Ask as on such a kernel: for a family that this one lacks."""
            lacking = 12 if family == socket.AF_INET6 else family
            return self._route.get_routes(family=lacking, table=table)

    monkeypatch.setattr(pyroute2, "IPRoute", WithoutIPv6)

    def make() -> tuple[KernelRoute, ...]:
        with Links() as net:
            net.add_veth("one", "other")
            net.set("one", up=True)
            net.set("other", up=True)
            net.add_address("one", "10.0.0.2/24")
            net.set_route("0.0.0.0/0", "one", gateway="10.0.0.1")
            return net.routes()

    assert {route.destination for route in netns.inside(namespace, make) if route.gateway} == {
        "0.0.0.0/0"
    }


def test_a_socket_that_cannot_be_had_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an undo goes on with the next step."""

    def no_more() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pyroute2, "IPRoute", no_more)
    with pytest.raises(LinkError, match="Too many open files") as told:
        Links()
    assert told.value.errno == errno.EMFILE


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.add_bridge("a-name-of-16-bytes"),
        lambda net: net.add_tap(""),
        lambda net: net.add_veth("one", "oth\0er"),
        lambda net: net.add_bridge("br0", mac="02:00"),
        lambda net: net.add_bridge("br0", mac="zz:zz:zz:zz:zz:zz"),
        lambda net: net.set("lo", mtu=1 << 32),
        lambda net: net.add_address("lo", "10.0.0.300/24"),
        lambda net: net.set_route("10.0.0.0/33", "lo"),
        lambda net: net.set_route("10.0.0.0/8", "lo", metric=-1),
    ],
)
def test_what_cannot_be_is_refused_like_the_kernels_refusals(
    namespace: Path, change: Callable[[Links], None]
) -> None:
    """Nothing of the library's comes out, and a name is not cut off."""

    def attempt() -> None:
        with Links() as net:
            before = net.show()
            try:
                change(net)
            finally:
                assert net.show() == before

    with pytest.raises(LinkError, match=r"cannot (make|change|give|set) .*: ") as told:
        netns.inside(namespace, attempt)
    assert told.value.errno == errno.EINVAL


def test_a_name_with_nul_is_that_of_no_interface(namespace: Path) -> None:
    """Also where it begins like the name of one."""

    def attempt() -> None:
        with Links() as net:
            net.delete("lo\0")
            net.set("lo\0", up=True)

    with pytest.raises(LinkError, match="there is no such interface"):
        netns.inside(namespace, attempt)


def test_deleting_both_ends_of_a_pair_at_one_time(namespace: Path) -> None:
    """Who comes too late finds nothing to do."""
    start = threading.Barrier(2)
    failed: list[LinkError] = []

    def delete(name: str) -> None:
        with Links() as net:
            for _ in range(100):
                start.wait()
                try:
                    net.delete(name)
                except LinkError as error:
                    failed.append(error)
                start.wait()
                if name == "one":
                    net.add_veth("one", "other")

    threads = [
        threading.Thread(target=netns.inside, args=(namespace, partial(delete, name)))
        for name in ("one", "other")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_sysctls(namespace: Path) -> None:
    """A setting is set in the namespace alone; one the kernel lacks is no error."""
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    other = "0" if before.strip() == "1" else "1"
    assert netns.inside(namespace, lambda: set_sysctl("ipv4/ip_forward", other))
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    assert not netns.inside(namespace, lambda: set_sysctl("ipv4/no_such_thing", "1"))


def _shown() -> tuple[Link, ...]:
    with Links() as net:
        return net.show()


def _make_tap() -> None:
    with Links() as net:
        net.add_tap("tap0")


def test_tap(namespace: Path) -> None:
    """A tap is opened once at a time, and never made by opening it."""
    netns.inside(namespace, _make_tap)
    descriptor = netns.inside(namespace, lambda: open_tap("tap0"))
    assert not os.get_inheritable(descriptor)
    with pytest.raises(FailedPrecondition, match="tap0: another process holds it"):
        netns.inside(namespace, lambda: open_tap("tap0"))
    os.close(descriptor)
    os.close(netns.inside(namespace, lambda: open_tap("tap0")))
    with pytest.raises(FailedPrecondition, match="cannot open tap tap1: there is none"):
        netns.inside(namespace, lambda: open_tap("tap1"))
    assert "tap1" not in {link.name for link in netns.inside(namespace, _shown)}


def test_tap_held_in_passing(namespace: Path) -> None:
    """A process that is being started holds copies of our descriptors until its program runs."""
    netns.inside(namespace, _make_tap)
    descriptor = netns.inside(namespace, lambda: open_tap("tap0"))
    read, write = os.pipe()
    starting = os.fork()
    if starting == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(descriptor)
    with pytest.raises(FailedPrecondition, match="tap0: another process holds it"):
        netns.inside(namespace, lambda: open_tap("tap0"))
    letting_go = threading.Timer(0.2, os.close, [write])
    letting_go.start()
    os.close(netns.inside(namespace, lambda: open_tap("tap0")))
    letting_go.join()
    os.waitpid(starting, 0)


def test_an_interface_moves_to_another_namespace_by_another_name(
    namespace: Path, tmp_path: Path
) -> None:
    """With what is noted on it; it is down there, and no hardware's."""
    other = tmp_path / "other"
    netns.create(other)

    def move() -> None:
        with Links() as net:
            net.add_veth("one", "far")
            net.set("one", up=True, alias="ens1v0")
            net.move("one", other, "net1")

    def show() -> dict[str, Link]:
        with Links() as net:
            return {link.name: link for link in net.show()}

    try:
        netns.inside(namespace, move)
        assert netns.inside(namespace, show).keys() == {"lo", "far"}
        moved = netns.inside(other, show)["net1"]
        assert (moved.alias, moved.pci, "UP" in moved.flags) == ("ens1v0", "", False)
    finally:
        netns.delete(other)


def test_what_is_no_physical_function_has_no_virtual_ones(namespace: Path) -> None:
    def ask() -> dict[int, str]:
        with Links() as net:
            net.add_veth("one", "far")
            with pytest.raises(LinkError, match="virtual function 0 of one") as caught:
                net.set_function_mac("one", 0, "02:00:00:00:00:01")
            assert caught.value.errno == errno.EOPNOTSUPP
            return net.function_macs("one")

    assert netns.inside(namespace, ask) == {}
