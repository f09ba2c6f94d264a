"""Header packing: what a strict peer insists on."""

from __future__ import annotations

import pytest
from hpack.hpack import Decoder, Encoder

from criproxy.http2.headers import Header, HeaderCodec

TRAILERS: list[Header] = [(b"grpc-message", b"short"), (b"grpc-status", b"2")]


@pytest.mark.parametrize("sizes", [(0,), (100,), (100, 100), (0, 4096), (4096,), (100, 0, 100)])
def test_a_change_of_the_peers_table_is_told_at_the_start_of_the_next_block(
    sizes: tuple[int, ...],
) -> None:
    codec, peer = HeaderCodec(), Decoder()
    for own in (b"a", b"b"):
        peer.decode(codec.encode([(b"own", own), *TRAILERS]))
    for size in sizes:
        codec.peer_table_size(size)
        peer.max_allowed_table_size = size
    for headers in (TRAILERS, [(b"own", b"b"), *TRAILERS], [(b"own", b"b")]):
        # The decoder raises for a change that is told late, or not at all.
        assert peer.decode(codec.encode(headers), raw=True) == headers
    assert peer.header_table_size == sizes[-1]


def test_a_table_larger_than_the_usual_one_is_not_used() -> None:
    codec, peer = HeaderCodec(), Decoder()
    codec.peer_table_size(1 << 20)
    assert peer.decode(codec.encode(TRAILERS), raw=True) == TRAILERS
    assert peer.header_table_size == 4096


def test_what_a_block_means_changes_with_the_table() -> None:
    codec, peer = HeaderCodec(), Encoder()
    for value in (b"a", b"b", b"c"):
        header = (b"own", value)
        # First a new entry of the table, which then goes by the same number as the one before it.
        blocks = [peer.encode([header]) for _ in range(3)]
        assert blocks[1] == blocks[2] == b"\xbe"
        assert [codec.decode(block) for block in blocks] == [([header], None)] * 3


def test_a_caller_may_change_the_list_it_got() -> None:
    codec = HeaderCodec()
    block = Encoder().encode([(b":status", b"200")])
    for _ in range(3):
        headers, _ = codec.decode(block)
        assert headers == [(b":status", b"200")]
        headers.append((b"x", b"y"))
