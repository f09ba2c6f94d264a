"""What the DHCP server is told, where a lease alone does not show it."""

from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.dhcp import configuration


def told(interface: Nic, searches: tuple[str, ...] = ()) -> list[str]:
    """The lines for a pod with one NIC."""
    addresses = tuple(a.split("/")[0] for a in interface.addresses)
    nic = BridgedNic(0, "eth0", interface.mac, 1500, (), (), addresses, (), "169.254.77.1")
    return configuration(
        "box",
        Network(netns=None, nics=(interface,), dns=DnsConfig(servers=(), searches=searches)),
        [nic],
    ).splitlines()


def test_search_domains_that_fit() -> None:
    """An option holds 255 bytes: the first domains that fit are offered, the rest is not."""
    domains = tuple(f"{'x' * 40}{number}.test" for number in range(10))
    lines = told(
        Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("10.0.0.2/8",)),
        domains,
    )
    (line,) = (line for line in lines if "domain-search" in line)
    assert line == f"dhcp-option=tag:nic0,option:domain-search,{','.join(domains[:5])}"


def test_no_default_route() -> None:
    """Without a default route the guest gets no router; the server does not name itself."""
    route = Route(destination="10.5.0.0/16", gateway="10.0.0.1")
    lines = told(
        Nic(
            name="eth0",
            mac="02:00:00:00:00:01",
            mtu=1500,
            addresses=("10.0.0.2/8",),
            routes=(route,),
        )
    )
    assert "dhcp-option=tag:nic0,option:router" in lines
    assert "dhcp-option=tag:nic0,option:classless-static-route,10.5.0.0/16,10.0.0.1" in lines


def test_ipv6_neighbours_off_the_link() -> None:
    """A single IPv6 address comes without neighbours, and without a router if it has none."""
    lines = told(Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1400, addresses=("fd00::5/128",)))
    assert "dhcp-range=fd00::5,static,off-link,64,infinite" in lines
    assert "ra-param=vbr0,mtu:1400,600,0" in lines
    assert not any("shared-network" in line for line in lines)
