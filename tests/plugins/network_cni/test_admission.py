"""Pods that no network can be made for."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from virtlet.errors import InvalidArgument
from virtlet.model.network import Network, Nic
from virtlet.model.pod import DnsConfig, Pod, PodConfig, PodMetadata, PortMapping
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_plugins import arguments
from virtlet.plugins.network_cni.dhcp import configuration
from virtlet.plugins.network_cni.guest_view import dns
from virtlet.plugins.network_cni.plugin import Plugin
from virtlet.testing.models import make_pod

GOOD = PodConfig(
    metadata=PodMetadata(name="web-0", uid="0c4f3e", namespace="default"),
    hostname="web-0.x",
    dns=DnsConfig(
        servers=("10.0.0.10", "fd00::10"), searches=("a.b.", "_tcp.x", "."), options=("ndots:5",)
    ),
    port_mappings=(PortMapping(container_port=80, host_port=0),),
)


def pod(config: PodConfig) -> Pod:
    return evolve(make_pod(), config=config)


def test_good_pod() -> None:
    """What Kubernetes allows is let through."""
    Plugin().virtlet_admit_pod(pod(GOOD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hostname": "a b"}, "hostname 'a b' is not a host name"),
        ({"hostname": "a\nport=53"}, "is not a host name"),
        (
            {"metadata": PodMetadata(name="a;IP=1.2.3.4", uid="u", namespace="n")},
            "pod metadata: name",
        ),
        ({"metadata": PodMetadata(name="a", uid="u\0", namespace="n")}, "pod metadata: uid"),
        ({"dns": DnsConfig(servers=("dns",))}, "DNS server 'dns' is not an address"),
        ({"dns": DnsConfig(servers=("fe80::1%eth0",))}, "DNS server 'fe80::1%eth0' is not an"),
        ({"dns": DnsConfig(servers=("fe80::1%a\nport=53",))}, "is not an address"),
        ({"dns": DnsConfig(servers=("::ffff:1.2.3.4",))}, "is not an address"),
        (
            {"dns": DnsConfig(servers=(), searches=("a,b",))},
            "DNS search domain 'a,b' is not a domain",
        ),
        (
            {"port_mappings": (PortMapping(container_port=70000, host_port=1),)},
            "port mapping 1 to 70000: no such port",
        ),
    ],
)
def test_wrong_pod(change: dict[str, Any], message: str) -> None:
    """What is wrong is named, before anything is done."""
    with pytest.raises(InvalidArgument) as caught:
        Plugin().virtlet_admit_pod(pod(evolve(GOOD, **change)))
    assert message in str(caught.value)


@given(hostname=st.text(max_size=20), domain=st.text(max_size=20), name=st.text(max_size=20))
def test_admitted_text_stays_where_it_belongs(hostname: str, domain: str, name: str) -> None:
    """No admitted text makes a line of the server's configuration, or an argument, of its own."""
    config = PodConfig(
        metadata=PodMetadata(name=name, uid="u", namespace="n"),
        hostname=hostname,
        dns=DnsConfig(servers=(), searches=(domain,)),
    )
    try:
        Plugin().virtlet_admit_pod(pod(config))
    except InvalidArgument:
        return
    interface = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("10.0.0.2/8",))
    nic = BridgedNic(0, "eth0", interface.mac, 1500, (), (), ("10.0.0.2",), (), "169.254.77.1")
    network = Network(netns=None, nics=(interface,), dns=dns(config.dns, DnsConfig()))
    lines = configuration(hostname or name, network, [nic]).splitlines()
    plain = Network(netns=None, nics=(interface,), dns=DnsConfig(servers=(), searches=("y.test",)))
    expected = configuration("x", plain, [nic]).splitlines()
    assert {keyword(line) for line in lines} <= {keyword(line) for line in expected}
    assert len(lines) <= len(expected)
    assert not set(";=\0") & set("".join(arguments(pod(config)).values()))


def keyword(line: str) -> str:
    return line.split("=")[0]
