"""Texts found in messages of unknown type."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from criproxy.rewrite import wire
from virtlet.cri import api_pb2 as cri

TEXT = st.text(min_size=1, max_size=60)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_problem(message: bytes) -> None:
    for field in wire.texts(message):
        assert 0 <= field.size_at < field.end <= len(message)


@given(TEXT, TEXT, st.integers(-(2**31), 2**31), st.text(min_size=1, max_size=250))
def test_texts_are_found_and_replaced_like_a_decoder_would(
    first: str, second: str, number: int, new: str
) -> None:
    message = cri.CheckpointContainerRequest(
        container_id=first, location=second, timeout=number
    ).SerializeToString()
    fields = list(wire.texts(message))
    assert [f.text for f in fields] == [first, second]
    changed = cri.CheckpointContainerRequest.FromString(wire.replace(message, fields[0], new))
    assert (changed.container_id, changed.location, changed.timeout) == (new, second, number)
