"""CNI results are read strictly, and nothing that a plugin prints does worse than an error."""

import json
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.model.network import Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni.configuration import SUPPORTED, at_least
from virtlet.plugins.network_cni.result import parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=15,
)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@st.composite
def interfaces(draw: st.DrawFn) -> dict[str, Any]:
    octets = draw(st.binary(min_size=6, max_size=6))
    return {
        "name": draw(st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)),
        "mac": octets.hex(":"),
        "sandbox": draw(st.sampled_from(["", "/run/netns/pod"])),
    }


@st.composite
def results(draw: st.DrawFn) -> dict[str, Any]:
    """Results as a plugin may give them, of all versions."""
    version = draw(st.sampled_from(SUPPORTED))
    links = draw(st.lists(interfaces(), min_size=1, max_size=3))
    ips = []
    for address in draw(st.lists(ADDRESSES, max_size=4)):
        prefix = draw(st.integers(0, address.max_prefixlen))
        ip = {
            "address": f"{address}/{prefix}",
            "interface": draw(st.integers(0, len(links) - 1)),
            "gateway": str(draw(st.ip_addresses(v=address.version))),
        }
        ips.append(ip if at_least(version, "1.0.0") else {**ip, "version": str(address.version)})
    routes = []
    for address in draw(st.lists(ADDRESSES, max_size=4)):
        destination = f"{address}/{draw(st.integers(0, address.max_prefixlen))}"
        routes.append({"dst": destination, "gw": str(draw(st.ip_addresses(v=address.version)))})
    servers = draw(st.lists(ADDRESSES.map(str), max_size=3))
    dns = {"nameservers": servers, "search": ["a.b"], "options": ["ndots:5"]}
    return {
        "cniVersion": version,
        "interfaces": links,
        "ips": ips,
        "routes": routes,
        "dns": dns,
    }


@given(results())
def test_good_results_are_read_whole(document: dict[str, Any]) -> None:
    """Every interface, address, route and server comes out as it was given."""
    result = parse(document, "0.4.0")
    assert [i.name for i in result.interfaces] == [i["name"] for i in document["interfaces"]]
    assert [i.mac for i in result.interfaces] == [i["mac"] for i in document["interfaces"]]
    assert [a.address for a in result.addresses] == [
        ip_interface(ip["address"]) for ip in document["ips"]
    ]
    assert [a.interface for a in result.addresses] == [ip["interface"] for ip in document["ips"]]
    assert [ip_network(r.destination) for r in result.routes] == [
        ip_network(route["dst"], strict=False) for route in document["routes"]
    ]
    assert list(result.dns.servers) == document["dns"]["nameservers"]
    assert result.document == document


def refusal(document: Any) -> str | None:
    """Why a document is refused, or None."""
    try:
        parse(document, "1.0.0")
    except ValueError as error:
        return str(error)
    return None


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    """Whatever JSON a plugin prints: a result or a ValueError with a message."""
    assert refusal(document) != ""


@given(results(), st.data())
def test_damaged_results_are_read_or_refused(document: dict[str, Any], data: st.DataObject) -> None:
    """One value of a good result replaced by anything: a result or a ValueError."""
    part = data.draw(st.sampled_from([document, *document["interfaces"], *document["ips"]]))
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = data.draw(JSON)
    assert refusal(document) != ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interfaces": {}}, "interfaces must be a list"),
        ({"interfaces": [{"name": "a/b"}]}, "interfaces[0].name 'a/b' is no interface name"),
        ({"interfaces": [{"name": "far-too-long-name"}]}, "is no interface name"),
        ({"interfaces": [{"name": "eth0", "mac": "1:2"}]}, "interfaces[0].mac '1:2' is no MAC"),
        ({"ips": [{"address": "10.0.0.1"}]}, "ips[0].address '10.0.0.1' is no address/prefix"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, "ips[0].address '10.0.0.1/33'"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": 4}]}, "ips[0].interface 4 is no index"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": True}]}, "ips[0].interface True"),
        ({"ips": [{"address": "10.0.0.1/8", "gateway": "fe80::1"}]}, "is not of IPv4"),
        ({"routes": [{"dst": "default"}]}, "routes[0].dst 'default' is no address/prefix"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, "routes[0].gw 'x' is no address"),
        ({"routes": [{"dst": "0.0.0.0/0", "priority": -1}]}, "routes[0].priority -1"),
        ({"dns": {"nameservers": ["ns"]}}, "dns.nameservers: 'ns' is no address"),
        ({"dns": {"search": ["a b"]}}, "search[0] 'a b' is no domain"),
        ({"dns": {"domain": "a\nb"}}, "dns.domain 'a\\nb' is no domain"),
        ({"dns": {"options": [""]}}, "options[0] must be a word"),
        ({"cniVersion": "0.2.0"}, "cniVersion '0.2.0': supported are"),
        ({"cniVersion": 1}, "cniVersion must be a text"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], message: str) -> None:
    """The message names the place and the value."""
    with pytest.raises(ValueError) as caught:
        parse({"cniVersion": "1.0.0", **change}, "1.0.0")
    assert message in str(caught.value)


def test_address_version_before_1_0() -> None:
    """Older results say the version of every address, and it has to be true."""
    document = {"cniVersion": "0.3.1", "ips": [{"version": "6", "address": "10.0.0.1/8"}]}
    with pytest.raises(ValueError, match=r"ips\[0\]\.version is not that of 10\.0\.0\.1/8"):
        parse(document, "0.3.1")


def test_what_may_be_left_out() -> None:
    """A result may lack everything; its version is then the configuration's."""
    result = parse({"ips": None, "dns": None}, "0.4.0")
    assert (result.interfaces, result.addresses, result.routes) == ((), (), ())
    assert result.document["cniVersion"] == "0.4.0"


def test_version_1_1_fields() -> None:
    """Metrics of routes are read, unknown fields pass on to the next plugin."""
    document = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": 1400, "pciID": "0000:00:01.0"}],
        "routes": [{"dst": "10.1.2.3/8", "gw": "10.0.0.1", "priority": 20, "mtu": 1300}],
        "dns": {"domain": "here.test", "search": ["b.test"]},
    }
    result = parse(json.loads(json.dumps(document)), "1.0.0")
    assert result.routes == (Route(destination="10.0.0.0/8", gateway="10.0.0.1", metric=20),)
    assert result.dns == DnsConfig(servers=(), searches=("b.test", "here.test"))
    assert result.document == document
