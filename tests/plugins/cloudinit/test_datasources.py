"""Documents of the data sources: how they are written, meta-data, and the network."""

import json
from ipaddress import ip_interface

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_pod
from tests.plugins.cloudinit.conftest import KEY
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.cloudinit.datasources import (
    dump,
    meta_data,
    meta_data_json,
    network_config,
    network_data_json,
)

# YAML's readers allow 1024 characters for a key.
MAPPING_KEYS = st.text(max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(MAPPING_KEYS, children),
    max_leaves=20,
)


@given(VALUES)
def test_json_and_yaml_readers_see_the_same_document(value: object) -> None:
    text = dump(value)
    assert json.loads(text) == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    "value",
    [
        *("\x7f", "\x85", "a\u2028b", "\ufeff", "\uffff", "😀", "\0", "\r\n", "\t"),
        *("52:54:00:12:34:56", "yes", "0755", "~", "- a", "# a", "{", "'", '"', "\\"),
        *(1e22, 1e-7, -0.0),
    ],
)
def test_what_the_two_formats_read_differently_is_written_safely(value: object) -> None:
    text = dump({"key": [value]})
    assert yaml.safe_load(text) == json.loads(text) == {"key": [value]}


def test_a_document_is_one_line() -> None:
    assert dump({"a": "x\ny", "b": [1, None, True]}) == '{"a": "x\\ny", "b": [1, null, true]}'


def test_meta_data_says_who_the_guest_is() -> None:
    assert meta_data(make_pod(), [KEY]) == {
        "instance-id": "web-1.shop",
        "local-hostname": "web-1",
        "public-keys": [KEY],
    }


def test_without_keys_none_are_named() -> None:
    assert "public-keys" not in meta_data(make_pod(), ())


def test_the_pod_s_hostname_wins_over_its_name() -> None:
    assert meta_data(make_pod(hostname="www"), ())["local-hostname"] == "www"


@pytest.mark.parametrize(
    ("name", "hostname"),
    [("a" * 63, "a" * 63), ("a" * 64, "a" * 63), ("a" * 61 + "-.b" + "c" * 9, "a" * 61)],
)
def test_a_long_name_is_cut_as_the_kubelet_cuts_it(name: str, hostname: str) -> None:
    assert meta_data(make_pod(name=name), ())["local-hostname"] == hostname


def test_keys_of_the_annotation_replace_the_generated_ones() -> None:
    marks = {"VirtletCloudInitMetaData": "local-hostname: db\nregion: {zone: a}"}
    assert meta_data(make_pod(marks), ()) == {
        "instance-id": "web-1.shop",
        "local-hostname": "db",
        "region": {"zone": "a"},
    }


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True))
def test_any_pod_name_gives_a_host_name(name: str) -> None:
    hostname = meta_data(make_pod(name=name), ())["local-hostname"]
    assert 1 <= len(hostname) <= 63
    assert name.startswith(hostname)
    assert hostname[-1] not in "-."


MAC = "52:54:00:12:34:56"
DUAL = Network(
    netns=None,
    nics=(
        Nic(
            name="eth0",
            mac=MAC,
            mtu=1450,
            addresses=("10.1.2.3/24", "fd00::3/64"),
            routes=(
                Route(destination="0.0.0.0/0", gateway="10.1.2.1"),
                Route(destination="::/0", gateway="fe80::1", metric=50),
            ),
        ),
        Nic(name="net1", mac="52:54:00:12:34:57", mtu=0),
    ),
    dns=DnsConfig(
        servers=("10.96.0.10",),
        searches=("default.svc.cluster.local", "cluster.local"),
        options=("ndots:5",),
    ),
)


def test_the_document_says_what_the_pod_s_network_is() -> None:
    static = {"dhcp4": False, "dhcp6": False, "accept-ra": False}
    assert network_config(DUAL) == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": MAC},
                "set-name": "eth0",
                **static,
                "mtu": 1450,
                "addresses": ["10.1.2.3/24", "fd00::3/64"],
                "routes": [
                    {"to": "0.0.0.0/0", "via": "10.1.2.1"},
                    {"to": "::/0", "via": "fe80::1", "metric": 50},
                ],
                "nameservers": {
                    "addresses": ["10.96.0.10"],
                    "search": ["default.svc.cluster.local", "cluster.local"],
                },
            },
            "net1": {"match": {"macaddress": "52:54:00:12:34:57"}, "set-name": "net1", **static},
        },
    }


def test_without_an_interface_there_is_no_document() -> None:
    assert network_config(Network(netns=None)) is None


def routes_of(addresses: tuple[str, ...], *routes: Route) -> list[dict[str, object]]:
    config = network_config(
        Network(
            netns=None,
            nics=(Nic(name="eth0", mac=MAC, mtu=0, addresses=addresses, routes=routes),),
        )
    )
    assert config is not None
    found: list[dict[str, object]] = config["ethernets"]["eth0"].get("routes", [])
    return found


def test_a_gateway_outside_the_subnet_is_on_the_link() -> None:
    """Calico's; it also gives a route to the gateway, which `on-link` makes needless."""
    assert routes_of(
        ("192.168.3.7/32",),
        Route(destination="169.254.1.1/32"),
        Route(destination="0.0.0.0/0", gateway="169.254.1.1"),
    ) == [{"to": "0.0.0.0/0", "via": "169.254.1.1", "on-link": True}]


def test_a_route_that_the_address_implies_is_left_out() -> None:
    assert (
        routes_of(
            ("10.1.2.3/24",), Route(destination="10.1.2.0/24"), Route(destination="10.1.2.128/25")
        )
        == []
    )


def test_another_destination_on_the_link_says_so() -> None:
    assert routes_of(("10.1.2.3/24",), Route(destination="10.9.0.0/16")) == [
        {"to": "10.9.0.0/16", "scope": "link"}
    ]


ADDRESSES = st.ip_addresses(v=4).map(lambda a: f"{a}/24") | st.ip_addresses(v=6).map(
    lambda a: f"{a}/64"
)
MACS = st.lists(st.integers(0, 255), min_size=6, max_size=6).map(
    lambda parts: ":".join(f"{part:02x}" for part in parts)
)


@given(MACS, st.lists(ADDRESSES, max_size=3), st.ip_addresses(), st.integers(0, 9000))
def test_any_network_survives_a_yaml_reader(
    mac: str, addresses: list[str], gateway: object, mtu: int
) -> None:
    """An unquoted MAC of digits would be read as a number in base 60."""
    routes = (Route(destination="0.0.0.0/0", gateway=str(gateway)), Route(destination="10.0.0.0/8"))
    network = Network(
        netns=None,
        nics=(Nic(name="eth0", mac=mac, mtu=mtu, addresses=tuple(addresses), routes=routes),),
    )
    config = network_config(network)
    assert yaml.safe_load(dump(config)) == config
    assert config is not None
    assert config["ethernets"]["eth0"]["match"]["macaddress"] == mac
    data = network_data_json(network)
    assert yaml.safe_load(dump(data)) == data
    assert len(data["networks"]) == len(addresses)


def test_a_config_drive_has_openstack_s_form() -> None:
    assert network_data_json(DUAL) == {
        "links": [
            {
                "id": "eth0",
                "name": "eth0",
                "type": "phy",
                "ethernet_mac_address": MAC,
                "mtu": 1450,
            },
            {
                "id": "net1",
                "name": "net1",
                "type": "phy",
                "ethernet_mac_address": "52:54:00:12:34:57",
                "mtu": None,
            },
        ],
        "networks": [
            {
                "id": "eth0-0",
                "network_id": "eth0-0",
                "type": "ipv4",
                "link": "eth0",
                "ip_address": "10.1.2.3",
                "netmask": "255.255.255.0",
                "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.2.1"}],
            },
            {
                "id": "eth0-1",
                "network_id": "eth0-1",
                "type": "ipv6",
                "link": "eth0",
                "ip_address": "fd00::3",
                "netmask": "ffff:ffff:ffff:ffff::",
                "routes": [{"network": "::", "netmask": "::", "gateway": "fe80::1"}],
            },
        ],
        "services": [
            {
                "type": "dns",
                "address": "10.96.0.10",
                "search": ["default.svc.cluster.local", "cluster.local"],
            }
        ],
    }


@pytest.mark.parametrize(
    ("servers", "services"),
    [
        (
            ("10.96.0.10", "10.96.0.11"),
            [
                {"type": "dns", "address": "10.96.0.10", "search": ["svc.cluster.local"]},
                {"type": "dns", "address": "10.96.0.11"},
            ],
        ),
        ((), [{"type": "dns", "address": [], "search": ["svc.cluster.local"]}]),
    ],
)
def test_a_config_drive_names_the_search_list_once(
    servers: tuple[str, ...], services: list[dict[str, object]]
) -> None:
    dns = DnsConfig(servers=servers, searches=("svc.cluster.local",))
    assert network_data_json(Network(netns=None, nics=(), dns=dns))["services"] == services


def test_a_second_address_of_a_family_does_not_repeat_the_routes() -> None:
    interface = Nic(
        name="eth0",
        mac=MAC,
        mtu=0,
        addresses=("10.1.2.3/24", "10.1.3.3/24"),
        routes=(Route(destination="0.0.0.0/0", gateway="10.1.2.1"),),
    )
    networks = network_data_json(Network(netns=None, nics=(interface,)))["networks"]
    assert [len(entry["routes"]) for entry in networks] == [1, 0]
    assert ip_interface("10.1.3.3/24").ip.compressed == networks[1]["ip_address"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [(["a", "b"], {"key-0": "a", "key-1": "b"}), ({"me": "a"}, {"me": "a"}), ("a", None)],
)
def test_a_config_drive_repeats_meta_data_under_openstack_s_names(
    keys: object, expected: object
) -> None:
    given_data = {"instance-id": "web-1.shop", "local-hostname": "web-1", "public-keys": keys}
    document = meta_data_json(given_data)
    assert document.items() >= given_data.items()
    assert (document["uuid"], document["hostname"]) == ("web-1.shop", "web-1")
    assert document.get("public_keys") == expected


def test_what_the_pod_says_in_openstack_s_names_stays() -> None:
    document = meta_data_json({"instance-id": "a", "uuid": "b", "hostname": "c"})
    assert (document["uuid"], document["hostname"]) == ("b", "c")
