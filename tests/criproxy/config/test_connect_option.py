"""The --connect option."""

from __future__ import annotations

import pytest

from criproxy.config.connect_option import parse_connect
from criproxy.config.schema import ConfigError


def test_the_original_form_is_understood() -> None:
    runtimes = parse_connect("/run/containerd/containerd.sock,virtlet.cloud:/run/virtlet.sock")
    assert [(r.name, r.socket) for r in runtimes] == [
        ("primary", "/run/containerd/containerd.sock"),
        ("virtlet.cloud", "/run/virtlet.sock"),
    ]


def test_the_primary_may_have_a_name_and_sockets_a_scheme() -> None:
    runtimes = parse_connect("containerd:unix:///a.sock, b:/b.sock,c:unix:/c.sock")
    assert [(r.name, r.socket) for r in runtimes] == [
        ("containerd", "/a.sock"),
        ("b", "/b.sock"),
        ("c", "/c.sock"),
    ]


def test_a_scheme_is_not_taken_for_a_name() -> None:
    assert parse_connect("unix:///a.sock")[0].name == "primary"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither a socket path nor NAME:PATH"),
        ("relative.sock", "neither a socket path nor NAME:PATH"),
        ("/a.sock,/b.sock", "part 2: only the first, the primary, goes without a name"),
        ("/a.sock,,b:/b.sock", "part 2"),
        ("/a.sock,b:relative", "not an absolute socket path"),
        ("/a.sock,b:", "not an absolute socket path"),
        ("/a.sock,:/b.sock", "part 2"),
        ("/a.sock,has space:/b.sock", "cannot name a runtime"),
        ("/a.sock,a__b:/b.sock", "no double '__'"),
        (f"/{'x' * 107}", "unix sockets take 107 at most"),
    ],
)
def test_what_does_not_fit_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_connect(text)
