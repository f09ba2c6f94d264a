"""Mistakes of ours while a frame is handled, and frames that cannot be taken apart."""

from __future__ import annotations

import logging

import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from criproxy.http2.frames import ConnectionFault, ErrorCode, FrameReader


class _Clumsy:
    """Fails at every frame but pings and, at first, settings."""

    def __init__(self) -> None:
        self.settled = False
        self.failed: list[int] = []
        self.pings: list[bytes] = []

    def data_came(self, stream_id: int, payload: bytes, size: int, ended: bool) -> None:
        raise LookupError("data")

    def headers_came(self, stream_id: int, block: bytes, ended: bool) -> None:
        raise LookupError("headers")

    def window_came(self, stream_id: int, size: int) -> None:
        raise LookupError("window")

    def ping_came(self, payload: bytes) -> None:
        self.pings.append(payload)

    def frame_came(self, frame: Frame) -> None:
        if self.settled:
            raise LookupError("frame")
        self.settled = True

    def frame_failed(self, stream_id: int) -> None:
        self.failed.append(stream_id)


@pytest.mark.parametrize(
    ("frame", "concerned"),
    [
        (DataFrame(3, data=b"x"), 3),
        (DataFrame(3, data=b"x", pad_length=2, flags=["PADDED"]), 3),
        (HeadersFrame(5, data=b"\x82", flags=["END_HEADERS"]), 5),
        (WindowUpdateFrame(7, window_increment=1), 7),
        (WindowUpdateFrame(0, window_increment=1), 0),
        (RstStreamFrame(9), 9),
    ],
)
def test_a_mistake_costs_one_call_and_what_follows_is_handled(
    frame: Frame, concerned: int, caplog: pytest.LogCaptureFixture
) -> None:
    handler = _Clumsy()
    reader = FrameReader(handler)
    with caplog.at_level(logging.ERROR):
        reader.feed(SettingsFrame(0).serialize())
        reader.feed(frame.serialize() + PingFrame(0, opaque_data=b"12345678").serialize())
    assert handler.failed == [concerned]
    assert handler.pings == [b"12345678"]
    assert "handling a frame failed" in caplog.text


@pytest.mark.parametrize("frame", [SettingsFrame(0), GoAwayFrame(0)])
def test_a_mistake_about_the_connection_ends_it(frame: Frame) -> None:
    handler = _Clumsy()
    reader = FrameReader(handler)
    reader.feed(SettingsFrame(0).serialize())
    with pytest.raises(LookupError):
        reader.feed(frame.serialize())
    assert handler.failed == []


def test_a_frame_that_cannot_be_taken_apart_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = _Clumsy()
    reader = FrameReader(handler)
    reader.feed(SettingsFrame(0).serialize())

    def broken(head: memoryview) -> tuple[Frame, int]:
        raise IndexError("not one of the library's own errors")

    monkeypatch.setattr(Frame, "parse_frame_header", broken)
    padded = HeadersFrame(3, data=b"\x82", pad_length=1, flags=["END_HEADERS", "PADDED"])
    with pytest.raises(ConnectionFault) as caught:
        reader.feed(padded.serialize())
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR
    assert handler.failed == []
