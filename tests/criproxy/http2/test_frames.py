"""Frames and header lists."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hpack.hpack import Decoder, Encoder
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

from criproxy.http2.frames import ConnectionFault, ErrorCode, FrameReader, Header, HeaderCodec
from tests.criproxy.fakes.proxy import Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri


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


#: Bytes: more than may pass, less than what costs the connection.
LONG = 70_000
VERY_LONG = 900_000


@contextmanager
def a_call_under_way(client: Client, containerd: FakeRuntime, container: str) -> Iterator[None]:
    """StopContainer goes on meanwhile, and has to end well."""
    began, release = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> Any:
        began.set()
        release.wait(30)
        return cri.StopContainerResponse()

    containerd.instead["StopContainer"] = hang
    call = client.runtime.StopContainer.future(cri.StopContainerRequest(container_id=container))
    try:
        assert began.wait(10)
        yield
    finally:
        release.set()
    call.result(timeout=10)


def fail_with(size: int) -> Callable[[Any, Any], Any]:
    return lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "e" * size)


@pytest.mark.parametrize("size", [LONG, VERY_LONG])
def test_an_answer_with_a_long_message_costs_its_call_alone(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime, size: int
) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ExecSync"] = fail_with(size)
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "containerd" in said(caught)
        assert "at most 65536 can pass" in said(caught)
        assert proxy.runtime("containerd").answering
    assert proxy.runtime("containerd").connects == 1
    # Both know the same table of headers still.
    containerd.instead["ExecSync"] = fail_with(10)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
    assert said(caught) == "e" * 10


def test_a_long_message_in_a_merged_answer_costs_its_call_alone(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ImageFsInfo"] = fail_with(LONG)
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.image.ImageFsInfo(cri.ImageFsInfoRequest())
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert proxy.runtime("containerd").connects == 1


@pytest.mark.parametrize("size", [LONG, VERY_LONG])
def test_a_client_with_long_metadata_keeps_its_other_calls(
    client: Client, containerd: FakeRuntime, size: int
) -> None:
    container = client.create(client.run_pod())
    containerd.calls.clear()
    with a_call_under_way(client, containerd, container):
        with pytest.raises(grpc.RpcError) as caught:
            client.runtime.Version(cri.VersionRequest(), metadata=(("x", "y" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not containerd.called("Version")
    client.runtime.Version(cri.VersionRequest(), metadata=(("x", "y"),))
    assert containerd.metadata["Version"]["x"] == "y"


def test_what_may_pass_passes_whole(client: Client, containerd: FakeRuntime) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ExecSync"] = fail_with(7000)
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
    assert said(caught) == "e" * 7000
