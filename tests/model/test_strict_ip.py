"""Addresses of others, as they may stand in configuration."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.model.strict_ip import ip_address, ip_interface, ip_network

ODD = [
    "fe80::1%eth0",
    "fe80::1%eth0\nconf-script=/tmp/x",
    "fe80::1% ",
    "10.0.0.1\n",
    " 10.0.0.1",
    "010.0.0.1",
    "10.0.0.1,10.0.0.2",
    "::ffff:10.0.0.1",
    "::ffff:a00:1",
    "١.2.3.4",
    "",
    "1",
]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("end", ["", "/24"])
@pytest.mark.parametrize("read", [ip_address, ip_interface, ip_network])
def test_odd_addresses_are_none(read: Callable[[str], object], text: str, end: str) -> None:
    with pytest.raises(ValueError):
        read(text + end)


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1", "::1", "64:ff9b::a00:1"])
def test_ordinary_addresses_are_read(text: str) -> None:
    assert str(ip_address(text)) == text
    assert str(ip_interface(f"{text}/31")) == f"{text}/31"
    assert ip_network(f"{text}/31", strict=False).prefixlen == 31


@given(st.text(st.sampled_from("0123456789abcdef:.%/\n ,[]'"), max_size=40))
def test_what_is_read_has_no_character_that_ends_a_value(text: str) -> None:
    for read in (ip_address, ip_interface, ip_network):
        try:
            found = str(read(text))
        except ValueError:
            continue
        assert set(found) <= set("0123456789abcdef:./")
