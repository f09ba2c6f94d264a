"""Deadlines and which headers are metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criproxy.rpc.metadata import format_timeout, metadata_of, parse_timeout
from criproxy.rpc.status import Code, RpcError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9)],
)
def test_every_unit_is_understood(text: bytes, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S"])
def test_what_is_no_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        parse_timeout(text)
    assert caught.value.code == Code.INVALID_ARGUMENT


@given(st.floats(min_value=1e-6, max_value=1e7))
def test_a_timeout_survives_being_sent(seconds: float) -> None:
    sent = format_timeout(seconds)
    assert len(sent) <= 9
    assert parse_timeout(sent) == pytest.approx(seconds, rel=1e-2, abs=1e-6)


def test_only_the_callers_headers_are_metadata() -> None:
    headers = [
        (b":path", b"/x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"kubelet"),
        (b"grpc-timeout", b"1S"),
        (b"grpc-trace-bin", b"AA"),
        (b"traceparent", b"00-1"),
    ]
    assert metadata_of(headers) == [(b"grpc-trace-bin", b"AA"), (b"traceparent", b"00-1")]
