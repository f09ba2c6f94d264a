"""Interfaces, addresses, routes and taps."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.errors import FailedPrecondition
from virtlet.host import links, netns
from virtlet.host.commands import CommandError
from virtlet.host.links import KernelRoute
from virtlet.host.taps import open_tap


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns"
    netns.create(path)
    yield path
    netns.delete(path)


def test_links_and_routes(namespace: Path) -> None:
    """What is made is shown: kinds, addresses of global scope, routes with and without gateway."""
    netns.inside(
        namespace,
        lambda: links.change(
            [
                "link add one type veth peer name other",
                "link set one address 02:00:00:00:00:0a mtu 1400 up",
                "link set other up",
                "address add 10.0.0.2/24 dev one",
                "address add fd00::2/64 dev one nodad",
                "route add default via 10.0.0.1 metric 5",
                "route add 192.0.2.1 dev one",
                "route add blackhole 198.51.100.0/24",
                "route add fd01::/16 via fd00::1",
            ]
        ),
    )
    shown, routes = netns.inside(namespace, links.show_with_routes)
    assert netns.inside(namespace, links.show) == shown
    found = {link.name: link for link in shown}
    assert found["one"].kind == "veth"
    assert (found["one"].mac, found["one"].mtu) == ("02:00:00:00:00:0a", 1400)
    assert found["one"].addresses == ("10.0.0.2/24", "fd00::2/64")
    assert found["other"].addresses == ()
    assert {route for route in routes if ":" not in route.destination} == {
        KernelRoute("0.0.0.0/0", "one", "10.0.0.1", 5, automatic=False),
        KernelRoute("192.0.2.1/32", "one", "", 0, automatic=False),
        KernelRoute("10.0.0.0/24", "one", "", 0, automatic=True),
    }
    assert KernelRoute("fd01::/16", "one", "fd00::1", 1024, automatic=False) in routes


def test_changes_stop_at_an_error(namespace: Path) -> None:
    """A change that fails is told, and later ones are not made."""
    commands = ["link set nowhere up", "link add br0 type bridge"]
    with pytest.raises(CommandError, match="nowhere"):
        netns.inside(namespace, lambda: links.change(commands))
    assert "br0" not in {link.name for link in netns.inside(namespace, links.show)}


def test_changes_carry_on(namespace: Path) -> None:
    """Or they are made all the same, and the failure is still told."""
    commands = ["link set nowhere up", "link add br0 type bridge"]
    with pytest.raises(CommandError, match="nowhere"):
        netns.inside(namespace, lambda: links.change(commands, carry_on=True))
    assert "br0" in {link.name for link in netns.inside(namespace, links.show)}


def test_sysctls(namespace: Path) -> None:
    """A setting is set in the namespace alone; one the kernel lacks is no error."""
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    other = "0" if before.strip() == "1" else "1"
    assert netns.inside(namespace, lambda: links.set_sysctl("ipv4/ip_forward", other))
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    assert not netns.inside(namespace, lambda: links.set_sysctl("ipv4/no_such_thing", "1"))


def test_tap(namespace: Path) -> None:
    """A tap is opened once at a time, and never made by opening it."""
    netns.inside(namespace, lambda: links.change(["tuntap add mode tap name tap0 vnet_hdr"]))
    descriptor = netns.inside(namespace, lambda: open_tap("tap0"))
    assert not os.get_inheritable(descriptor)
    with pytest.raises(FailedPrecondition, match="tap0: another process holds it"):
        netns.inside(namespace, lambda: open_tap("tap0"))
    os.close(descriptor)
    os.close(netns.inside(namespace, lambda: open_tap("tap0")))
    with pytest.raises(FailedPrecondition, match="cannot open tap tap1: there is none"):
        netns.inside(namespace, lambda: open_tap("tap1"))
    assert "tap1" not in {link.name for link in netns.inside(namespace, links.show)}
