import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_pod
from virtlet.plugins.cloudinit.datasources import meta_data

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGexample me@host"


def test_meta_data_says_who_the_guest_is() -> None:
    assert meta_data(make_pod({"VirtletSSHKeys": KEY})) == {
        "instance-id": "web-1.shop",
        "local-hostname": "web-1",
        "public-keys": [KEY],
    }


def test_without_keys_none_are_named() -> None:
    assert "public-keys" not in meta_data(make_pod())


def test_the_pod_s_hostname_wins_over_its_name() -> None:
    assert meta_data(make_pod(hostname="www"))["local-hostname"] == "www"


@pytest.mark.parametrize(
    ("name", "hostname"),
    [("a" * 63, "a" * 63), ("a" * 64, "a" * 63), ("a" * 61 + "-.b" + "c" * 9, "a" * 61)],
)
def test_a_long_name_is_cut_as_the_kubelet_cuts_it(name: str, hostname: str) -> None:
    assert meta_data(make_pod(name=name))["local-hostname"] == hostname


def test_keys_of_the_annotation_replace_the_generated_ones() -> None:
    marks = {"VirtletCloudInitMetaData": "local-hostname: db\nregion: {zone: a}"}
    assert meta_data(make_pod(marks)) == {
        "instance-id": "web-1.shop",
        "local-hostname": "db",
        "region": {"zone": "a"},
    }


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True))
def test_any_pod_name_gives_a_host_name(name: str) -> None:
    hostname = meta_data(make_pod(name=name))["local-hostname"]
    assert 1 <= len(hostname) <= 63
    assert name.startswith(hostname)
    assert hostname[-1] not in "-."
