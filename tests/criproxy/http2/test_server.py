"""The side of a connection that takes calls, with a client that changes its settings and leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from criproxy.http2.endpoints import MAX_STREAMS
from criproxy.http2.frames import ErrorCode
from tests.criproxy.fakes.proxy import RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.criproxy.http2.raw import EMPTY, RawClient, Received, request
from virtlet.cri import api_pb2 as cri

WIDE = 1 << 24


def ask(raw: RawClient, stream: int) -> Received:
    """Call Version."""
    raw.send(raw.headers(stream), DataFrame(stream, EMPTY, flags=["END_STREAM"]))
    return raw.whole(stream)


def answering(length: int, trailing: int) -> Callable[[Any, Any], Any]:
    """A Version with this many bytes, and as many in its trailers."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("long", "t" * trailing),))
        return cri.VersionResponse(version="v" * length)

    return answer


@pytest.mark.parametrize("sizes", [(0,), (100, 100), (0, 4096), (8192,), (200, 0, 100)])
def test_the_clients_header_table_is_kept_to(
    raw: RawClient, containerd: FakeRuntime, sizes: tuple[int, ...]
) -> None:
    containerd.instead["Version"] = answering(5, 20)
    raw.greet()
    ask(raw, 1)
    for size in sizes:
        raw.allow_table(size)
    raw.heard()
    for stream in (3, 5):
        received = ask(raw, stream)
        assert (b":status", b"200") in received.lists[0]
        assert {(b"grpc-status", b"0"), (b"long", b"t" * 20)} <= set(received.lists[1])


def test_a_header_table_that_shrinks_within_a_call_is_kept_to(
    raw: RawClient, containerd: FakeRuntime
) -> None:
    release = threading.Event()

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield cri.StreamPodSandboxesResponse()
        release.wait(30)
        context.abort(grpc.StatusCode.INTERNAL, "so it is")

    containerd.instead["StreamPodSandboxes"] = stream
    headers = request("/runtime.v1.RuntimeService/StreamPodSandboxes")
    raw.greet().send(raw.headers(1, headers), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    raw.unpacked(raw.until(HeadersFrame, 1).data)
    raw.until(DataFrame, 1)
    raw.allow_table(0)
    raw.heard()
    release.set()
    trailers = dict(raw.unpacked(raw.until(HeadersFrame, 1).data))
    assert (trailers[b"grpc-status"], trailers[b"grpc-message"]) == (b"13", b"so it is")


def test_no_frame_is_longer_than_the_client_takes(raw: RawClient, containerd: FakeRuntime) -> None:
    containerd.instead["Version"] = answering(100_000, 50_000)
    raw.greet(INITIAL_WINDOW_SIZE=WIDE).send(WindowUpdateFrame(0, window_increment=WIDE))
    received = ask(raw, 1)
    # Until it says otherwise, the least that everyone takes.
    assert max(received.sizes) == 16384
    raw.settings(MAX_FRAME_SIZE=40_000)
    raw.heard()
    longer = ask(raw, 3)
    assert 16384 < max(longer.sizes) <= 40_000
    for whole in (received, longer):
        assert cri.VersionResponse.FromString(whole.data[5:]).version == "v" * 100_000
        assert (b"long", b"t" * 50_000) in whole.lists[1]


def test_a_window_that_settings_make_negative_is_kept_to(
    raw: RawClient, containerd: FakeRuntime
) -> None:
    containerd.instead["Version"] = answering(5000, 5)
    raw.greet(INITIAL_WINDOW_SIZE=1000)
    raw.send(raw.headers(1), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    assert len(raw.until(DataFrame, 1).data) == 1000
    raw.settings(INITIAL_WINDOW_SIZE=100)
    raw.send(WindowUpdateFrame(1, window_increment=900))
    raw.send(PingFrame(0, b"anything"))
    for frame in raw.frames():
        assert not isinstance(frame, DataFrame)
        if isinstance(frame, PingFrame):
            break
    raw.send(WindowUpdateFrame(1, window_increment=10))
    assert len(raw.until(DataFrame, 1).data) == 10


def test_more_calls_than_announced_are_refused_one_by_one(raw: RawClient) -> None:
    raw.greet()
    announced = raw.until(SettingsFrame).settings
    assert announced[SettingsFrame.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
    streams = range(1, 2 * MAX_STREAMS, 2)
    raw.send(*(raw.headers(stream) for stream in streams))
    last = streams[-1]
    raw.send(raw.headers(last + 2))
    refused = raw.until(RstStreamFrame)
    assert (refused.stream_id, refused.error_code) == (last + 2, ErrorCode.REFUSED_STREAM)
    raw.send(RstStreamFrame(1, error_code=int(ErrorCode.CANCEL)))
    raw.call_version(last + 4)


def test_a_proxy_that_stops_refuses_new_calls_and_answers_the_old(
    raw: RawClient, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    began, release = threading.Event(), threading.Event()

    def slow(request: Any, context: Any) -> Any:
        began.set()
        release.wait(30)
        return cri.VersionResponse(version="late")

    containerd.instead["Version"] = slow
    raw.greet().send(raw.headers(1), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    assert began.wait(10)
    stopping = threading.Thread(target=proxy.stop)
    stopping.start()
    goaway = raw.until(GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code) == (1, ErrorCode.NO_ERROR)
    raw.send(raw.headers(3))
    assert raw.until(RstStreamFrame, 3).error_code == ErrorCode.REFUSED_STREAM
    release.set()
    assert b"late" in raw.whole(1).data
    stopping.join(20)
    assert list(raw.frames()) == []


def test_a_client_that_leaves_has_its_calls_answered(
    raw: RawClient, containerd: FakeRuntime
) -> None:
    release = threading.Event()

    def slow(request: Any, context: Any) -> Any:
        release.wait(30)
        return cri.VersionResponse(version="late")

    containerd.instead["Version"] = slow
    raw.greet().send(raw.headers(1), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    raw.send(GoAwayFrame(0, last_stream_id=0))
    raw.heard()
    release.set()
    assert b"late" in raw.whole(1).data
