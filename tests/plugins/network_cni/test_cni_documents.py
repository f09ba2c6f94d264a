"""CNI configurations and results are read strictly, and no document does worse than an error."""

import json
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.users import as_user
from virtlet.errors import FailedPrecondition
from virtlet.model.network import Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni import cni_config, cni_plugins, cni_result
from virtlet.plugins.network_cni.cni_config import SUPPORTED, at_least, load

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=15,
)


def not_mapped(address: IPv4Address | IPv6Address) -> bool:
    """IPv4 in IPv6's form is no address."""
    return isinstance(address, IPv4Address) or address.ipv4_mapped is None


FAMILIES = {version: st.ip_addresses(v=version).filter(not_mapped) for version in (4, 6)}
ADDRESSES = st.one_of(*FAMILIES.values())


def parse_result(document: Any) -> cni_result.CniResult:
    return cni_result.parse(document, "1.0.0")


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
            "gateway": str(draw(FAMILIES[address.version])),
        }
        ips.append(ip if at_least(version, "1.0.0") else {**ip, "version": str(address.version)})
    routes = []
    for address in draw(st.lists(ADDRESSES, max_size=4)):
        destination = f"{address}/{draw(st.integers(0, address.max_prefixlen))}"
        routes.append({"dst": destination, "gw": str(draw(FAMILIES[address.version]))})
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
    result = cni_result.parse(document, "0.4.0")
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


def refusal(parse: Callable[[Any], object], document: Any) -> str | None:
    """Why a document is refused, or None."""
    try:
        parse(document)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("parse", [cni_config.parse, parse_result])
@given(document=JSON)
def test_any_document_is_read_or_refused(parse: Callable[[Any], object], document: Any) -> None:
    """Whatever JSON a file holds or a plugin prints: it is read, or a ValueError says why not."""
    assert refusal(parse, document) != ""


@given(results(), st.data())
def test_damaged_results_are_read_or_refused(document: dict[str, Any], data: st.DataObject) -> None:
    """One value of a good result replaced by anything: a result or a ValueError."""
    part = data.draw(st.sampled_from([document, *document["interfaces"], *document["ips"]]))
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = data.draw(JSON)
    assert refusal(parse_result, document) != ""


def test_an_interface_that_the_aws_vpc_only_writes_down_is_in_no_pod() -> None:
    """Its MAC address is the number of a VLAN and its sandbox that of a device."""
    document = {"interfaces": [{"name": "dumm0a1b2c3d4e5", "mac": "0", "sandbox": "2"}]}
    (interface,) = parse_result(document).interfaces
    assert (interface.mac, interface.in_pod) == ("", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interfaces": {}}, "interfaces must be a list"),
        ({"interfaces": [{"name": "a/b"}]}, "interfaces[0].name 'a/b' is not an interface name"),
        ({"interfaces": [{"name": "far-too-long-name"}]}, "is not an interface name"),
        ({"interfaces": [{"name": "eth0", "mac": "1:2"}]}, "interfaces[0].mac '1:2' is not a MAC"),
        ({"ips": [{"address": "10.0.0.1"}]}, "ips[0].address '10.0.0.1' is not an address/prefix"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, "ips[0].address '10.0.0.1/33'"),
        ({"ips": [{"address": "010.0.0.1/8"}]}, "is not an address/prefix"),
        ({"ips": [{"address": "fe80::1%a\nport=53/64"}]}, "is not an address/prefix"),
        ({"ips": [{"address": "::ffff:10.0.0.1/128"}]}, "is not an address/prefix"),
        ({"routes": [{"dst": "fe80::%a/64"}]}, "is not an address/prefix"),
        ({"routes": [{"dst": "::/0", "gw": "fe80::1%eth0"}]}, "'fe80::1%eth0' is not an address"),
        ({"dns": {"nameservers": ["fe80::1%eth0"]}}, "'fe80::1%eth0' is not an address"),
        (
            {"ips": [{"address": "10.0.0.1/8", "interface": 4}]},
            "ips[0].interface 4 is not an index",
        ),
        ({"ips": [{"address": "10.0.0.1/8", "interface": True}]}, "ips[0].interface True"),
        ({"ips": [{"address": "10.0.0.1/8", "gateway": "fe80::1"}]}, "is not of IPv4"),
        ({"routes": [{"dst": "default"}]}, "routes[0].dst 'default' is not an address/prefix"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}, "routes[0].gw 'x' is not an address"),
        ({"routes": [{"dst": "0.0.0.0/0", "priority": -1}]}, "routes[0].priority -1"),
        ({"dns": {"nameservers": ["ns"]}}, "dns.nameservers: 'ns' is not an address"),
        ({"dns": {"search": ["a b"]}}, "search[0] 'a b' is not a domain"),
        ({"dns": {"domain": "a\nb"}}, "dns.domain 'a\\nb' is not a domain"),
        ({"dns": {"options": [""]}}, "options[0] must be a word"),
        ({"cniVersion": "0.2.0"}, "cniVersion '0.2.0': supported are"),
        ({"cniVersion": 1}, "cniVersion must be a text"),
    ],
)
def test_what_is_wrong_with_a_result_is_told(change: dict[str, Any], message: str) -> None:
    """The message names the place and the value."""
    with pytest.raises(ValueError) as caught:
        cni_result.parse({"cniVersion": "1.0.0", **change}, "1.0.0")
    assert message in str(caught.value)


def test_address_version_before_1_0() -> None:
    """Older results say the version of every address, and it has to be true."""
    document = {"cniVersion": "0.3.1", "ips": [{"version": "6", "address": "10.0.0.1/8"}]}
    with pytest.raises(ValueError, match=r"ips\[0\]\.version is not that of 10\.0\.0\.1/8"):
        cni_result.parse(document, "0.3.1")


def test_what_may_be_left_out() -> None:
    """A result may lack everything; its version is then the configuration's."""
    result = cni_result.parse({"ips": None, "dns": None}, "0.4.0")
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
    result = cni_result.parse(json.loads(json.dumps(document)), "1.0.0")
    assert result.routes == (Route(destination="10.0.0.0/8", gateway="10.0.0.1", metric=20),)
    assert result.dns == DnsConfig(servers=(), searches=("b.test", "here.test"))
    assert result.document == document


def write(directory: Path, name: str, document: Any) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def network(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **more}


def test_first_by_name(tmp_path: Path) -> None:
    """The first file by name counts; other endings do not."""
    write(tmp_path, "20-b.conflist", network(name="b"))
    write(tmp_path, "10-a.conf", {"cniVersion": "0.4.0", "name": "a", "type": "ptp"})
    write(tmp_path, "05-c.conflist.bak", network(name="c"))
    loaded = load(tmp_path)
    assert (loaded.name, loaded.version) == ("a", "0.4.0")
    assert [plugin.type for plugin in loaded.plugins] == ["ptp"]


def test_changes_are_seen(tmp_path: Path) -> None:
    """Files are read again every time."""
    write(tmp_path, "10.conflist", network())
    assert load(tmp_path).name == "net"
    write(tmp_path, "10.conflist", network(name="other"))
    assert load(tmp_path).name == "other"


def test_plugins_in_files_of_their_own(tmp_path: Path) -> None:
    """Plugins below a directory of the network's name are added, unless the list forbids it."""
    write(tmp_path, "10.conflist", network())
    write(tmp_path / "net", "50-more.conf", {"type": "tuning"})
    assert [plugin.type for plugin in load(tmp_path).plugins] == ["bridge", "tuning"]
    write(tmp_path, "10.conflist", network(loadOnlyInlinedPlugins=True))
    assert [plugin.type for plugin in load(tmp_path).plugins] == ["bridge"]


def test_newest_common_version() -> None:
    """Of the versions that a configuration offers, the newest that we speak is used."""
    assert cni_config.parse(network(cniVersions=["0.4.0", "1.1.0", "2.0.0"])).version == "1.1.0"


def test_capabilities_that_are_wanted() -> None:
    """Only capabilities that are true count."""
    plugin = {"type": "x", "capabilities": {"dns": True, "ips": False, "mac": None}}
    assert cni_config.parse(network(plugins=[plugin])).plugins[0].capabilities == {"dns"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a JSON object"),
        (network(name=""), "name must be a non-empty text"),
        (network(name="../up"), "name '../up' is not valid"),
        (network(cniVersion="0.2.0"), "cniVersion '0.2.0': supported are 0.3.0"),
        ({"name": "net", "plugins": [{"type": "x"}]}, "cniVersion is missing"),
        (network(plugins=[]), "the list of plugins is empty"),
        (network(plugins={}), "plugins must be a list"),
        (network(plugins=["x"]), "plugins[0] must be an object"),
        (network(plugins=[{}]), "plugins[0].type must be a non-empty text"),
        (network(plugins=[{"type": "../x"}]), "plugins[0].type '../x' is not a file name"),
        (network(plugins=[{"type": "x", "capabilities": 1}]), "capabilities must be an object"),
        (network(disableCheck="maybe"), "disableCheck must be true or false"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(
    tmp_path: Path, document: Any, message: str
) -> None:
    """The message names the file and the place in it."""
    write(tmp_path, "10-wrong.conflist", document)
    with pytest.raises(FailedPrecondition) as caught:
        load(tmp_path)
    assert f"{tmp_path}/10-wrong.conflist" in str(caught.value)
    assert message in str(caught.value)


def test_closed_directory() -> None:
    """Where the manager may not read, the message says at which directory, and whose that is."""
    with tempfile.TemporaryDirectory() as parent:  # closed to all but its owner
        directory = Path(parent) / "net.d"
        directory.mkdir()
        with as_user(65534), pytest.raises(FailedPrecondition) as caught:
            load(directory)
        text = str(caught.value)
        assert f"CNI configuration directory {directory}: permission denied to nobody at" in text
        assert f"at {parent} (drwx------, of root): let it enter" in text


def test_a_plugin_gets_the_managers_environment_without_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no CNI variable but those of its call."""
    monkeypatch.setenv("VIRTLET_SECRET", "hunter2")
    monkeypatch.setenv("CNI_IFNAME", "stray0")
    monkeypatch.setenv("KUBECONFIG", "/etc/kubeconfig")
    plugin = tmp_path / "told"
    plugin.write_text(
        '#!/bin/sh\necho "[\\"$VIRTLET_SECRET\\", \\"$CNI_IFNAME\\", \\"$KUBECONFIG\\"]"\n'
    )
    plugin.chmod(0o755)
    told = cni_plugins.invoke(tmp_path, "told", "VERSION", {}, {}, timeout=60)
    assert told == ["", "", "/etc/kubeconfig"]
