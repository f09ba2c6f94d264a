"""Clients and runtimes that break the protocol: only they are cut off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criproxy.http2.frames import MAX_FRAME, ErrorCode
from criproxy.http2.http2_connection import PREFACE
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.criproxy.http2.raw import EMPTY, VERSION, RawClient
from tests.polling import until
from virtlet.cri import api_pb2 as cri


def test_a_good_call_frame_by_frame(raw: RawClient) -> None:
    raw.greet().call_version(1)
    raw.call_version(3)


def test_frames_cut_into_single_bytes_are_understood(raw: RawClient) -> None:
    data = PREFACE + SettingsFrame(0).serialize() + raw.headers(1).serialize()
    for byte in data + DataFrame(1, EMPTY, flags=["END_STREAM"]).serialize():
        raw.socket.sendall(bytes((byte,)))
    assert b"containerd" in raw.until(DataFrame, 1).data


def test_padding_priorities_and_unknown_frames_are_taken(raw: RawClient) -> None:
    raw.greet()
    headers = raw.headers(1, None, "PADDED", "PRIORITY")
    headers.pad_length = 7
    data = DataFrame(1, EMPTY, flags=["END_STREAM", "PADDED"])
    data.pad_length = 9
    raw.socket.sendall(b"\x00\x00\x03\xee\x00\x00\x00\x00\x00abc")
    raw.send(PriorityFrame(1, depends_on=0, stream_weight=3), headers, data)
    assert b"containerd" in raw.until(DataFrame, 1).data


def test_headers_in_several_frames_are_put_together(raw: RawClient) -> None:
    raw.greet()
    block = raw.encoder.encode([*VERSION, (b"long", b"x" * 6000)])
    raw.send(HeadersFrame(1, block[:10]))
    raw.send(ContinuationFrame(1, block[10:3000]))
    raw.send(ContinuationFrame(1, block[3000:], flags=["END_HEADERS"]))
    raw.send(DataFrame(1, EMPTY, flags=["END_STREAM"]))
    assert b"containerd" in raw.until(DataFrame, 1).data


def test_pings_are_answered(raw: RawClient) -> None:
    raw.greet().send(PingFrame(0, b"12345678"))
    pong = raw.until(PingFrame)
    assert pong.opaque_data == b"12345678"
    assert "ACK" in pong.flags


def test_a_small_window_is_kept_to(raw: RawClient, containerd: FakeRuntime, client: Client) -> None:
    containerd.instead["Version"] = lambda request, context: cri.VersionResponse(version="v" * 5000)
    raw.greet(INITIAL_WINDOW_SIZE=1000)
    raw.send(raw.headers(1), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    received = b""
    for frame in raw.frames():
        if isinstance(frame, DataFrame):
            received += frame.data
            assert len(frame.data) <= 1000
            raw.send(WindowUpdateFrame(1, window_increment=len(frame.data)))
        if isinstance(frame, HeadersFrame) and "END_STREAM" in frame.flags:
            break
    assert len(received) > 5000


BAD: dict[str, Callable[[RawClient], bytes]] = {
    "no settings first": lambda raw: PREFACE + PingFrame(0, b"x" * 8).serialize(),
    "a frame too long": lambda raw: (MAX_FRAME + 1).to_bytes(3, "big") + b"\x00" * 6,
    "data on a stream never opened": lambda raw: DataFrame(1, b"x").serialize(),
    "reset of a stream never opened": lambda raw: RstStreamFrame(1).serialize(),
    "a server's stream id": lambda raw: raw.headers(2).serialize(),
    "a push": lambda raw: PushPromiseFrame(1, 2, b"", flags=["END_HEADERS"]).serialize(),
    "a continuation of nothing": lambda raw: ContinuationFrame(1, b"").serialize(),
    "headers interrupted": lambda raw: (
        HeadersFrame(1, b"").serialize() + PingFrame(0, b"x" * 8).serialize()
    ),
    "endless headers": lambda raw: (
        HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 128
    ),
    "headers that are longer and longer": lambda raw: (
        HeadersFrame(1, b"").serialize() + ContinuationFrame(1, bytes(MAX_FRAME)).serialize() * 5
    ),
    "undecodable headers": lambda raw: HeadersFrame(
        1, b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"]
    ).serialize(),
    "an enormous header list": lambda raw: raw.headers(
        1, [*VERSION, *((b"n", b"v" * 4000) for _ in range(300))]
    ).serialize(),
    "a small block of an enormous list": lambda raw: (
        raw.headers(1, [*VERSION, (b"n", b"v" * 3000)]).serialize()
        + HeadersFrame(3, b"\xbe" * 1000, flags=["END_HEADERS"]).serialize()
    ),
    "a window that overflows": lambda raw: WindowUpdateFrame(
        0, window_increment=2**31 - 1
    ).serialize(),
    "a forbidden frame size": lambda raw: (
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x01"
    ),
    "settings on a stream": lambda raw: b"\x00\x00\x00\x04\x00\x00\x00\x00\x01",
    "a window of zero": lambda raw: b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "half a setting": lambda raw: b"\x00\x00\x03\x04\x00\x00\x00\x00\x00abc",
    "half a reset": lambda raw: (
        raw.headers(1).serialize() + b"\x00\x00\x02\x03\x00\x00\x00\x00\x01ab"
    ),
    "half a ping": lambda raw: b"\x00\x00\x04\x06\x00\x00\x00\x00\x00abcd",
    "a ping on a stream": lambda raw: b"\x00\x00\x08\x06\x00\x00\x00\x00\x01abcdefgh",
    "headers on no stream": lambda raw: b"\x00\x00\x01\x01\x04\x00\x00\x00\x00\x82",
    "data on no stream": lambda raw: b"\x00\x00\x01\x00\x00\x00\x00\x00\x00a",
    "more padding than frame": lambda raw: (
        raw.headers(1).serialize() + b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x05a"
    ),
    "a window on a stream never opened": lambda raw: WindowUpdateFrame(
        1, window_increment=5
    ).serialize(),
    "a window that settings let overflow": lambda raw: (
        raw.headers(1).serialize()
        + WindowUpdateFrame(1, window_increment=2**31 - 1 - 65535).serialize()
        + SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65536}).serialize()
    ),
    "a window in settings too large": lambda raw: SettingsFrame(
        0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**31}
    ).serialize(),
    "neither push nor no push": lambda raw: SettingsFrame(
        0, settings={SettingsFrame.ENABLE_PUSH: 2}
    ).serialize(),
    "a header table changed within a block": lambda raw: HeadersFrame(
        1, b"\x82\x20", flags=["END_HEADERS"]
    ).serialize(),
    "a larger header table than allowed": lambda raw: HeadersFrame(
        1, b"\x3f\xe2\x1f", flags=["END_HEADERS"]
    ).serialize(),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_who_breaks_the_protocol_is_cut_off_with_a_reason_and_nobody_else_is(
    raw: RawClient, client: Client, what: str
) -> None:
    data = BAD[what](raw)
    if not data.startswith(PREFACE):
        raw.greet()
    # It may be cut off before it has sent all.
    with suppress(ConnectionError):
        raw.socket.sendall(data)
    goaway = raw.until(GoAwayFrame)
    assert goaway.error_code != 0
    assert goaway.additional_data
    assert list(raw.frames()) == []
    client.runtime.Version(cri.VersionRequest())


@pytest.mark.parametrize(
    "bad",
    [
        (b"Upper", b"x"),
        (b"space d", b"x"),
        (b"", b"x"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"name", b"line\r\nbreak"),
        (b"name", b"zero\x00"),
    ],
)
def test_a_bad_header_costs_its_call_and_reaches_no_runtime(
    raw: RawClient, containerd: FakeRuntime, bad: tuple[bytes, bytes]
) -> None:
    containerd.calls.clear()
    raw.greet().send(raw.headers(1, [*VERSION, bad]))
    raw.until(RstStreamFrame, 1)
    assert not containerd.called("Version")
    raw.call_version(3)


def test_more_than_the_streams_window_costs_the_call(
    raw: RawClient, containerd: FakeRuntime
) -> None:
    release = threading.Event()

    def hang(request: Any, context: Any) -> Any:
        release.wait(5)
        return cri.ImageFsInfoResponse()

    containerd.instead["ImageFsInfo"] = hang
    merged = [*VERSION[:2], (b":path", b"/runtime.v1.ImageService/ImageFsInfo"), *VERSION[3:]]
    raw.greet().send(raw.headers(1, merged), DataFrame(1, EMPTY))
    for _ in range(70):
        raw.send(DataFrame(1, b"x" * 16000))
    assert raw.until(RstStreamFrame, 1).error_code == 3
    release.set()
    raw.call_version(3)


AFTER_THE_END: dict[str, Callable[[RawClient], Frame]] = {
    "data": lambda raw: DataFrame(1, EMPTY),
    "headers": lambda raw: raw.headers(1, [(b"late", b"x")], "END_STREAM"),
}


@pytest.mark.parametrize("what", sorted(AFTER_THE_END))
def test_what_comes_after_the_end_of_the_request_costs_the_call(
    raw: RawClient, containerd: FakeRuntime, what: str
) -> None:
    began, cancelled = threading.Event(), threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(cancelled.set)
        began.set()
        cancelled.wait(30)
        return cri.VersionResponse()

    containerd.instead["Version"] = hang
    raw.greet().send(raw.headers(1), DataFrame(1, EMPTY, flags=["END_STREAM"]))
    assert began.wait(10)
    raw.send(AFTER_THE_END[what](raw))
    assert raw.until(RstStreamFrame, 1).error_code == ErrorCode.STREAM_CLOSED
    assert cancelled.wait(10)
    del containerd.instead["Version"]
    raw.call_version(3)


def test_headers_within_a_request_cost_the_call(raw: RawClient) -> None:
    raw.greet().send(raw.headers(1), raw.headers(1, [(b"more", b"x")]))
    assert raw.until(RstStreamFrame, 1).error_code == ErrorCode.PROTOCOL_ERROR
    raw.call_version(3)


def test_data_after_the_answer_is_let_be(raw: RawClient) -> None:
    raw.greet().send(raw.headers(1), DataFrame(1, EMPTY))
    assert b"containerd" in raw.until(DataFrame, 1).data
    raw.until(HeadersFrame, 1)
    raw.send(DataFrame(1, b"late"), WindowUpdateFrame(1, window_increment=5), RstStreamFrame(1))
    raw.call_version(3)


def test_what_is_not_grpc_is_answered_in_http(raw: RawClient) -> None:
    plain = [*VERSION[:4], (b"content-type", b"text/html")]
    raw.greet().send(raw.headers(1, plain, "END_STREAM"))
    assert "END_STREAM" in raw.until(HeadersFrame, 1).flags
    raw.call_version(3)


def test_a_bad_timeout_is_refused(raw: RawClient) -> None:
    raw.greet().send(raw.headers(1, [*VERSION, (b"grpc-timeout", b"soon")], "END_STREAM"))
    assert "END_STREAM" in raw.until(HeadersFrame, 1).flags
    raw.call_version(3)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_stop_the_proxy(proxy: RunningProxy, data: bytes, greeted: bool) -> None:
    raw = RawClient(proxy.config.listen)
    try:
        if greeted:
            raw.greet()
        raw.socket.sendall(data)
    except OSError:
        pass
    finally:
        raw.socket.close()
    good = RawClient(proxy.config.listen)
    good.greet().call_version(1)
    good.socket.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40)
        ),
        max_size=12,
    )
)
def test_no_sequence_of_frames_stops_the_proxy(
    proxy: RunningProxy, frames: list[tuple[int, int, int, bytes]]
) -> None:
    raw = RawClient(proxy.config.listen).greet()
    try:
        raw.send(raw.headers(1))
        for kind, flags, stream, body in frames:
            head = len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
            raw.socket.sendall(head + body)
    except OSError:
        pass
    finally:
        raw.socket.close()
    good = RawClient(proxy.config.listen)
    good.greet().call_version(1)
    good.socket.close()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        SettingsFrame(0).serialize() + b"\xff" * 100,
        SettingsFrame(0).serialize() + HeadersFrame(7, b"\x88", flags=["END_HEADERS"]).serialize(),
        SettingsFrame(0).serialize() + GoAwayFrame(0, error_code=2).serialize(),
    ],
)
def test_a_runtime_that_breaks_the_protocol_is_away_and_the_others_are_served(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
    run_dir: Path,
    data: bytes,
) -> None:
    path = run_dir / "odd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    accepted, _ = listener.accept()
                except TimeoutError:
                    continue
                with accepted:
                    accepted.sendall(data)
                    stop.wait(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        proxy = start_proxy({"containerd": containerd.path, VM: path})
        client = connect(proxy.config.listen)
        assert client.run_pod() in client.pods()
        until(lambda: proxy.runtime(VM).reason not in ("", "not connected yet"))
        with pytest.raises(grpc.RpcError) as caught:
            client.run_pod(target=VM)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        stop.set()
        thread.join(5)
