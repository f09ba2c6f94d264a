"""Messages, deadlines and calls of gRPC."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from criproxy.rpc.messages import (
    Code,
    MessageReader,
    RpcError,
    format_timeout,
    frame,
    metadata_of,
    parse_timeout,
)
from criproxy.rpc.outgoing import streaming
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.criproxy.http2.raw import ANSWER, FINE, client_and_server
from virtlet.cri import api_pb2 as cri


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2500), max_size=12))
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(frame(p) for p in payloads)
    reader = MessageReader(1000)
    out = []
    ends = sorted({min(c, len(data)) for c in cuts} | {len(data)})
    start = 0
    for end in ends:
        reader.feed(data[start:end])
        start = end
        while (message := reader.next()) is not None:
            out.append(message.payload(None, 1000))
    assert out == payloads
    assert reader.pending == 0


def test_a_message_longer_than_the_limit_is_refused_by_its_head() -> None:
    reader = MessageReader(10)
    reader.feed(b"\x00\x00\x00\x00\x0b")
    with pytest.raises(RpcError) as caught:
        reader.next()
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


def test_unknown_flags_are_refused() -> None:
    reader = MessageReader(10)
    reader.feed(b"\x07\x00\x00\x00\x00")
    with pytest.raises(RpcError) as caught:
        reader.next()
    assert caught.value.code == Code.INTERNAL


def compressed(data: bytes) -> MessageReader:
    reader = MessageReader(1 << 20)
    reader.feed(b"\x01" + len(data).to_bytes(4, "big") + data)
    return reader


def test_both_compressions_are_unpacked() -> None:
    for encoding, data in ((b"gzip", gzip.compress(b"x" * 500)), (b"deflate", zlib.compress(b"y"))):
        message = compressed(data).next()
        assert message is not None
        assert message.payload(encoding, 500) in (b"x" * 500, b"y")


@pytest.mark.parametrize(
    ("data", "encoding", "code"),
    [
        (gzip.compress(b"x" * 501, mtime=0), b"gzip", Code.RESOURCE_EXHAUSTED),
        (b"no gzip", b"gzip", Code.INVALID_ARGUMENT),
        (b"", b"snappy", Code.UNIMPLEMENTED),
        (b"", None, Code.UNIMPLEMENTED),
    ],
)
def test_what_does_not_unpack_is_refused(data: bytes, encoding: bytes | None, code: Code) -> None:
    message = compressed(data).next()
    assert message is not None
    with pytest.raises(RpcError) as caught:
        message.payload(encoding, 500)
    assert caught.value.code == code


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


#: What a server may send on a stream before it has to wait.
WINDOW = 1 << 20


def test_a_message_longer_than_the_window_comes_also_behind_one_that_was_not_taken() -> None:
    sizes = [700_000, 100, 4_000_000, 10]
    received: list[int] = []

    async def story() -> None:
        async with client_and_server() as (connection, server):
            messages = streaming(connection.open, "/a/b", b"", limit=1 << 24)
            first = asyncio.ensure_future(anext(messages))
            stream = await asyncio.to_thread(server.called)
            server.send(server.headers(stream, ANSWER))
            data = b"".join(frame(b"m" * size) for size in sizes)
            # The first message is taken; behind it the window is filled while nobody takes.
            early = frame(b"m" * sizes[0])
            await asyncio.to_thread(server.send_data, stream, early, WINDOW)
            received.append(len(await first))
            await asyncio.to_thread(server.send_data, stream, data[len(early) : WINDOW], WINDOW)
            await asyncio.to_thread(server.heard)
            received.append(len(await anext(messages)))
            rest = asyncio.to_thread(server.send_data, stream, data[WINDOW:], 0)
            sending = asyncio.ensure_future(rest)
            received.append(len(await anext(messages)))
            received.append(len(await anext(messages)))
            await sending
            server.send(server.headers(stream, FINE, "END_STREAM"))
            assert [message async for message in messages] == []

    uvloop.run(story())
    assert received == sizes


def test_messages_of_megabytes_reach_a_slow_reader(client: Client, virtlet: FakeRuntime) -> None:
    sizes = [2_000_000] * 6 + [100, 4_000_000, 10]

    def items(request: Any, context: Any) -> Iterator[Any]:
        for size in sizes:
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=[cri.PodSandbox(id="x" * size)])

    virtlet.instead["StreamPodSandboxes"] = items
    stream = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(), timeout=60)
    received = []
    for message in stream:
        received += [len(pod.id) for pod in message.pod_sandboxes]
        time.sleep(0.2)
    assert received == sizes
