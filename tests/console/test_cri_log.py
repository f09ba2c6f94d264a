"""Raw bytes become CRI log lines and can be had back."""

import re

from hypothesis import given
from hypothesis import strategies as st

from virtlet.console.cri_log import (
    MAX_PAYLOAD,
    Decoded,
    decode,
    encode,
    encode_loss,
    encode_notice,
)

LINE = re.compile(rb"2026-01-02T15:04:05\.000000789Z stdout [FP] [^\n]{0,%d}\n" % MAX_PAYLOAD)
NOW = 1767366245_000000789

_pieces = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"\n", b"\r\n", b"\n\n\n", b"\xff\xfe", "zażółć".encode(), b"login: "]),
    st.integers(MAX_PAYLOAD - 2, 2 * MAX_PAYLOAD + 2).map(lambda size: b"x" * size),
)
_outputs = st.lists(_pieces, max_size=12).map(b"".join)


@given(_outputs, st.booleans())
def test_lines_stand_for_exactly_the_bytes_taken(data: bytes, flush: bool) -> None:
    encoded = encode(data, NOW, flush=flush)
    decoded = decode(encoded.text)
    assert decoded.payload == data[: encoded.taken]
    assert decoded.whole == len(encoded.text)


@given(_outputs, st.booleans())
def test_every_line_is_a_cri_log_line(data: bytes, flush: bool) -> None:
    text = encode(data, NOW, flush=flush).text
    assert b"".join(LINE.findall(text)) == text


@given(_outputs)
def test_only_an_unfinished_line_shorter_than_a_part_is_left(data: bytes) -> None:
    left = data[encode(data, NOW, flush=False).taken :]
    assert b"\n" not in left
    assert len(left) < MAX_PAYLOAD
    assert data.endswith(left)


@given(_outputs)
def test_a_flush_leaves_nothing(data: bytes) -> None:
    assert encode(data, NOW, flush=True).taken == len(data)


@given(st.lists(_outputs, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_any_sequence_of_batches_gives_the_output_back(
    batches: list[bytes], flushes: list[bool]
) -> None:
    text, left = b"", b""
    for batch, flush in zip(batches, flushes, strict=False):
        encoded = encode(left + batch, NOW, flush=flush)
        text, left = text + encoded.text, (left + batch)[encoded.taken :]
    assert decode(text).payload + left == b"".join(batches)


@given(_outputs, st.data())
def test_torn_text_gives_back_its_whole_lines(data: bytes, draw: st.DataObject) -> None:
    text = encode(data, NOW, flush=True).text
    torn = text[: draw.draw(st.integers(0, len(text)))]
    decoded = decode(torn)
    assert data.startswith(decoded.payload)
    assert torn[decoded.whole :].count(b"\n") == 0


def test_a_printed_line_is_one_full_line() -> None:
    assert encode(b"hello\r\n", NOW, flush=False).text == (
        b"2026-01-02T15:04:05.000000789Z stdout F hello\r\n"
    )


def test_a_line_of_just_the_limit_is_not_split() -> None:
    text = encode(b"x" * MAX_PAYLOAD + b"\n", NOW, flush=False).text
    assert text.count(b" stdout F ") == 1
    assert text.count(b"\n") == 1


def test_a_longer_line_is_partial_until_its_end() -> None:
    lines = encode(b"a\n" + b"x" * (2 * MAX_PAYLOAD + 1) + b"\n", NOW, flush=False).text
    tags = [line.split(b" ")[2] for line in lines.splitlines()]
    assert tags == [b"F", b"P", b"P", b"F"]


def test_an_unfinished_line_waits_unless_flushed() -> None:
    assert encode(b"login: ", NOW, flush=False).text == b""
    assert encode(b"login: ", NOW, flush=True).text.endswith(b" stdout P login: \n")


@given(st.integers(1, 2**63))
def test_a_loss_is_a_line_on_stderr_that_gives_its_count_back(count: int) -> None:
    text = encode_loss(count, NOW)
    assert re.fullmatch(
        rb"2026-01-02T15:04:05\.000000789Z stderr F \[virtlet: \d+ [^\n]+\]\n", text
    )
    assert decode(text) == Decoded(b"", len(text), count)


@given(st.text())
def test_a_notice_is_one_line_on_stderr_that_stands_for_nothing_printed(words: str) -> None:
    text = encode_notice(words, NOW)
    assert text.startswith(b"2026-01-02T15:04:05.000000789Z stderr F [virtlet: ")
    assert text.endswith(b"]\n")
    assert text.count(b"\n") == 1
    assert decode(text + encode(b"guest\n", NOW, flush=True).text).payload == b"guest\n"


def test_no_guest_can_print_what_looks_like_a_loss() -> None:
    text = encode(encode_loss(7, NOW), NOW, flush=True).text
    assert decode(text).lost == 0
