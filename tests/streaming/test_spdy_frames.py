"""SPDY framing: bytes as the protocol has them, whatever the pieces they come in."""

import struct
import zlib
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.streaming.handlers import ProtocolError
from virtlet.streaming.spdy_frames import (
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    DataFrame,
    Frame,
    FrameDecoder,
    FrameEncoder,
    GoAway,
    Headers,
    Ping,
    RstStream,
    SettingsFrame,
    SynReply,
    SynStream,
    WindowUpdate,
)

DICTIONARY = files("virtlet.streaming").joinpath("dictionary.bin").read_bytes()

stream_ids = st.integers(1, 0x7FFFFFFF)
words = st.integers(0, 0xFFFFFFFF)
names = st.text(st.characters(codec="latin-1", exclude_categories=["Lu"]), min_size=1, max_size=20)
headers = st.dictionaries(
    names.map(str.lower).filter(lambda name: name == name.lower()),
    st.text(st.characters(codec="latin-1"), max_size=40),
    max_size=5,
)
frames = st.one_of(
    st.builds(SynStream, stream_ids, headers, st.booleans(), st.booleans()),
    st.builds(SynReply, stream_ids, headers, st.booleans()),
    st.builds(Headers, stream_ids, headers, st.booleans()),
    st.builds(RstStream, stream_ids, words),
    st.builds(SettingsFrame, st.dictionaries(st.integers(0, 0xFFFFFF), words, max_size=4)),
    st.builds(Ping, words),
    st.builds(GoAway, stream_ids, words),
    st.builds(WindowUpdate, stream_ids, st.integers(0, 0x7FFFFFFF)),
    st.builds(DataFrame, stream_ids, st.binary(max_size=300), st.booleans()),
)


def joined(decoded: list[Frame]) -> list[Frame]:
    """Join the parts of each data frame, as a part without `fin` may be followed by more."""
    whole: list[Frame] = []
    for frame in decoded:
        last = whole[-1] if whole else None
        if (
            isinstance(frame, DataFrame)
            and isinstance(last, DataFrame)
            and not last.fin
            and last.stream_id == frame.stream_id
        ):
            whole[-1] = DataFrame(frame.stream_id, last.data + frame.data, frame.fin)
        else:
            whole.append(frame)
    return whole


@given(st.lists(frames, max_size=12), st.data())
def test_frames_come_back_as_they_were_in_pieces_of_any_size(
    sent: list[Frame], data: st.DataObject
) -> None:
    encoder, decoder = FrameEncoder(), FrameDecoder()
    octets = b"".join(encoder.encode(frame) for frame in sent)
    received: list[Frame] = []
    while octets:
        size = data.draw(st.integers(1, len(octets)))
        received += decoder.feed(octets[:size])
        octets = octets[size:]
    assert joined(received) == joined(sent)


def decoded(*pieces: bytes) -> list[Frame] | str:
    """Return the frames, or what is wrong with the bytes."""
    decoder = FrameDecoder()
    try:
        return [frame for piece in pieces for frame in decoder.feed(piece)]
    except ProtocolError as error:
        return str(error)


@given(st.lists(st.binary(max_size=400), max_size=8))
def test_bytes_that_are_no_frames_end_in_a_protocol_error_or_in_frames(pieces: list[bytes]) -> None:
    result = decoded(*pieces)
    if isinstance(result, str):
        assert len(result) < 200
    else:
        assert all(isinstance(frame, Frame) for frame in result)


@given(st.sampled_from([1, 2, 8]), st.binary(max_size=300), st.integers(0, 255))
def test_header_blocks_that_are_none_end_in_a_protocol_error_or_in_headers(
    kind: int, block: bytes, flags: int
) -> None:
    packer = zlib.compressobj(zdict=DICTIONARY)
    packed = packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH)
    body = struct.pack(">I", 1) + (bytes(6) if kind == 1 else b"") + packed
    result = decoded(struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body)
    if isinstance(result, str):
        assert "header block" in result
    else:
        assert isinstance(result[0], SynStream | SynReply | Headers)


def test_the_dictionary_is_that_of_the_protocol() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


@pytest.mark.parametrize(
    ("frame", "octets"),
    [
        (Ping(1), "80030006 00000004 00000001"),
        (RstStream(5, 3), "80030003 00000008 00000005 00000003"),
        (GoAway(9, 1), "80030007 00000008 00000009 00000001"),
        (WindowUpdate(3, 65536), "80030009 00000008 00000003 00010000"),
        (SettingsFrame({4: 100}), "80030004 0000000c 00000001 00000004 00000064"),
        (DataFrame(3, b"hello"), "00000003 00000005 68656c6c6f"),
        (DataFrame(3, b"", fin=True), "00000003 01000000"),
    ],
)
def test_frames_have_the_bytes_of_the_protocol(frame: Frame, octets: str) -> None:
    assert FrameEncoder().encode(frame) == bytes.fromhex(octets)
    assert list(FrameDecoder().feed(bytes.fromhex(octets))) == [frame]


def test_a_header_block_is_zlib_with_the_dictionary() -> None:
    octets = FrameEncoder().encode(SynStream(1, {"streamType": "error"}, fin=True))
    assert octets[:8] == bytes.fromhex("80030001 01") + struct.pack(">I", len(octets) - 8)[1:]
    block = zlib.decompressobj(zdict=DICTIONARY).decompress(octets[18:])
    assert block == b"\0\0\0\1\0\0\0\x0astreamtype\0\0\0\5error"


def test_a_long_data_frame_is_passed_on_before_it_is_whole() -> None:
    decoder = FrameDecoder()
    head = struct.pack(">II", 7, 1 << 24 | MAX_DATA_BYTES)
    parts = list(decoder.feed(head + bytes(200_000)))
    assert {type(part) for part in parts} == {DataFrame}
    assert sum(len(part.data) for part in parts if isinstance(part, DataFrame)) == 200_000
    assert not any(part.fin for part in parts if isinstance(part, DataFrame))
    *_, last = decoder.feed(bytes(MAX_DATA_BYTES - 200_000))
    assert isinstance(last, DataFrame)
    assert last.fin


def test_more_data_than_a_frame_holds_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="do not fit into one frame"):
        FrameEncoder().encode(DataFrame(1, bytes(MAX_DATA_BYTES + 1)))


def control(kind: int, body: bytes, version: int = 3, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return struct.pack(">HHI", 0x8000 | version, kind, size) + body


def bomb() -> bytes:
    packer = zlib.compressobj(zdict=DICTIONARY)
    return packer.compress(bytes(10_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)


def block(raw: bytes) -> bytes:
    packer = zlib.compressobj(zdict=DICTIONARY)
    return bytes(10) + packer.compress(raw) + packer.flush(zlib.Z_SYNC_FLUSH)


PAIR = b"\0\0\0\1a\0\0\0\1b"


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (control(6, b"1234", version=2), "version 2; this server speaks 3"),
        (control(6, b"", length=70_000), "70000 bytes; this server takes 65536"),
        (control(6, b"123"), "PING frame has the wrong length, 3"),
        (control(3, b"123456789"), "RST_STREAM frame has the wrong length, 9"),
        (control(1, b"123"), "SYN_STREAM frame has the wrong length, 3"),
        (control(4, b"\0\0\0\2" + bytes(8)), "cannot hold 2 values"),
        (control(1, bytes(10) + b"no zlib"), "does not unpack"),
        (control(1, bytes(10) + bomb()), f"longer than {MAX_HEADER_BYTES} bytes"),
        (control(1, bytes(10)), "ends within a header"),
        (control(1, block(b"\xff\xff\xff\xff" + PAIR)), "ends within a header"),
        (control(1, block(b"\0\0\0\1\0\0\0\x09a")), "ends within a header"),
        (control(1, block(b"\0\0\0\1" + PAIR + b"x")), "more than its headers"),
        (control(1, block(b"\0\0\0\2" + PAIR + PAIR)), "names a header twice"),
        (control(1, block(b"\0\0\0\1\0\0\0\0\0\0\0\1b")), "without a name"),
    ],
)
def test_what_is_wrong_is_said(octets: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        list(FrameDecoder().feed(octets))


def test_frames_of_an_unknown_type_are_passed_over() -> None:
    octets = control(99, b"whatever") + FrameEncoder().encode(Ping(3))
    assert list(FrameDecoder().feed(octets)) == [Ping(3)]
