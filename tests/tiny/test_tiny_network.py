"""The tiny guest on networks of its own: what DHCP and a version 2 network-config may say."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny.tiny_guest import Guest, make_seed

MACS = ("52:54:00:00:00:0a", "52:54:00:00:00:0b")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with two taps, tap0 with addresses of the host side."""
    name = f"tiny-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "tuntap add dev tap0 mode tap",
            "tuntap add dev tap1 mode tap",
            "addr add 10.88.0.1/24 dev tap0",
            "addr add fd88::1/64 dev tap0 nodad",
            "link set tap0 up",
            "link set tap1 up",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def dnsmasq(namespace: str, tmp_path: Path) -> Iterator[None]:
    """A DHCP and router advertisement server on tap0 with a CNI result's worth of options."""
    process = subprocess.Popen(
        [
            *("ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--port=0"),
            *("--conf-file=/dev/null", "--bind-interfaces", "--interface=tap0", "--leasefile-ro"),
            f"--pid-file={tmp_path}/dnsmasq.pid",
            f"--dhcp-host={MACS[0]},10.88.0.5,from-dhcp",
            *("--dhcp-range=10.88.0.5,10.88.0.5,255.255.255.0,1h", "--dhcp-range=fd88::,ra-only"),
            "--enable-ra",
            "--dhcp-option=option:classless-static-route,10.96.0.0/12,10.88.0.9,0.0.0.0/0,169.254.1.1",
            *("--dhcp-option=option:router,10.88.0.254", "--dhcp-option=option:mtu,1380"),
            *("--dhcp-option=option:dns-server,10.96.0.10", "--domain=ns.svc.cluster.local"),
            "--dhcp-option=option:domain-search,ns.svc.cluster.local,cluster.local",
        ],
        stderr=subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def taps() -> list[str]:
    """QEMU's arguments for two NICs on the namespace's taps."""
    arguments = []
    for index, mac in enumerate(MACS):
        tap = f"tap,id=net{index},ifname=tap{index},script=no,downscript=no"
        nic = f"virtio-net-pci,netdev=net{index},mac={mac}"
        arguments += ["-netdev", tap, "-device", nic]
    return arguments


@pytest.mark.usefixtures("dnsmasq")
def test_dhcp_options_and_network_config_version_2(
    tmp_path: Path, tiny_image: Path, namespace: str
) -> None:
    """One NIC takes routes, MTU and DNS from DHCP; the other is static, renamed and routed."""
    ethernets = {
        "id0": {"match": {"macaddress": MACS[0]}, "dhcp4": True},
        "id1": {
            "match": {"macaddress": MACS[1]},
            "set-name": "eth0",
            "addresses": ["10.99.0.2/32"],
            "routes": [{"to": "10.98.0.0/16", "via": "10.99.0.1", "metric": 50}],
            "nameservers": {"addresses": ["10.99.0.3"], "search": ["extra.example"]},
            "mtu": 1300,
            "accept-ra": False,
        },
    }
    seed = make_seed(tmp_path / "seed.iso", network_config={"version": 2, "ethernets": ethernets})
    wrapper = ("ip", "netns", "exec", namespace)
    with Guest(tiny_image, tmp_path, "-cdrom", str(seed), network=taps(), wrapper=wrapper) as guest:
        # The name is the one from DHCP, as the seed holds none.
        guest.wait_for("from-dhcp (?=login:)")
        guest.login()
        by_dhcp = guest.run("cd /sys/class/net; grep -l ^52:54:00:00:00:0a */address").split("/")[0]
        assert by_dhcp == "eth0-old"
        link = guest.run(
            f"until ip addr show dev {by_dhcp} | grep -q ' fd88::'; do sleep 0.2; done"
            f"; ip addr show dev {by_dhcp}"
        )
        assert " inet 10.88.0.5/24 " in link
        assert " mtu 1380 " in link
        assert " mtu 1300 " in guest.run("ip addr show dev eth0")
        assert guest.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra") == "0\n"
        routes = guest.run("ip route")
        assert f"default via 169.254.1.1 dev {by_dhcp} onlink" in routes
        assert f"10.96.0.0/12 via 10.88.0.9 dev {by_dhcp}" in routes
        assert "10.88.0.254" not in routes
        assert "10.98.0.0/16 via 10.99.0.1 dev eth0  metric 50 onlink" in routes
        resolver = guest.run("cat /etc/resolv.conf").splitlines()
        assert set(resolver[:2]) == {"nameserver 10.96.0.10", "nameserver 10.99.0.3"}
        assert set(resolver[2].split()) == {
            "search",
            "ns.svc.cluster.local",
            "cluster.local",
            "extra.example",
        }
