"""The side of a connection that makes calls, with a server that limits, refuses and leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import uvloop
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)

from criproxy.http2.frames import MAX_FRAME, Header
from criproxy.http2.stream import Sink
from criproxy.methods import BY_NAME
from criproxy.rpc.outgoing import request_headers
from tests.criproxy.fakes.proxy import Client, RunningProxy
from tests.criproxy.http2.raw import ANSWER, FINE, RawRuntime, RawServer, client_and_server
from tests.polling import until

WIDE = 1 << 24
HEADERS = request_headers(BY_NAME["Version"].path, (), None)
#: Unknown calls go to the primary, byte for byte.
QUICK, SLOW, ODD = "/test/Quick", "/test/Slow", "/test/Odd"


class Call(Sink):
    """A call that notes what it hears."""

    def __init__(self, seen: list[str] | None = None) -> None:
        self.seen = [] if seen is None else seen

    def on_headers(self, headers: list[Header], ended: bool) -> None:
        """The answer starts."""
        self.seen.append("headers")

    def on_data(self, data: bytes, ended: bool) -> None:
        """The answer goes on."""
        self.seen.append("data")

    def on_trailers(self, headers: list[Header]) -> None:
        """The answer ends."""
        self.seen.append("trailers")

    def on_reset(self, code: int, reason: str) -> None:
        """The call was given up."""
        self.seen.append(f"reset {code}")

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""
        self.seen.append("lost")


def test_a_cut_connection_is_told_of_before_its_calls_fail_so_that_none_is_made_on_it() -> None:
    seen: list[str] = []

    async def cut() -> None:
        async with client_and_server(lambda reason: seen.append("no more calls")) as (
            connection,
            server,
        ):
            connection.open(HEADERS, Call(seen))
            server.socket.close()
            await connection.closed

    uvloop.run(cut())
    assert seen == ["no more calls", "lost"]


@pytest.mark.parametrize("sizes", [(0,), (100, 100), (0, 4096), (8192,), (200, 0, 100)])
def test_the_servers_header_table_is_kept_to(sizes: tuple[int, ...]) -> None:
    own = [*HEADERS, (b"own", b"1"), (b"other", b"2")]

    async def story() -> None:
        async with client_and_server() as (connection, server):

            async def call() -> None:
                stream = connection.open(own, Call())
                stream.send_data(b"", ended=True)
                received = await asyncio.to_thread(server.whole, stream.id)
                assert received.lists == [own]

            await call()
            for size in sizes:
                server.allow_table(size)
            await asyncio.to_thread(server.heard)
            await call()
            await call()

    uvloop.run(story())


def test_no_frame_is_longer_than_the_server_takes() -> None:
    long: Header = (b"long", b"m" * 50_000)

    async def story() -> None:
        async with client_and_server(INITIAL_WINDOW_SIZE=WIDE) as (connection, server):
            server.send(WindowUpdateFrame(0, window_increment=WIDE))

            async def longest() -> int:
                stream = connection.open([*HEADERS, long], Call())
                stream.send_data(b"d" * 100_000, ended=True)
                received = await asyncio.to_thread(server.whole, stream.id)
                assert received.lists == [[*HEADERS, long]]
                assert received.data == b"d" * 100_000
                return max(received.sizes)

            await asyncio.to_thread(server.heard)
            assert await longest() == 16384
            server.settings(MAX_FRAME_SIZE=40_000)
            await asyncio.to_thread(server.heard)
            assert 16384 < await longest() <= 40_000

    uvloop.run(story())


def test_the_servers_windows_are_kept_to() -> None:
    async def story() -> None:
        async with client_and_server(INITIAL_WINDOW_SIZE=1000) as (connection, server):
            stream = connection.open(HEADERS, Call())
            stream.send_data(b"d" * 2500, ended=True)
            for more in (1000, 1000):
                data = await asyncio.to_thread(server.until, DataFrame, stream.id)
                assert len(data.data) == 1000
                server.send(WindowUpdateFrame(stream.id, window_increment=more))
            data = await asyncio.to_thread(server.until, DataFrame, stream.id)
            assert (len(data.data), "END_STREAM" in data.flags) == (500, True)
            # The connection's own window, which nobody has opened further.
            server.settings(INITIAL_WINDOW_SIZE=WIDE)
            await asyncio.to_thread(server.heard)
            other = connection.open(HEADERS, Call())
            other.send_data(b"d" * 100_000, ended=True)
            received = 2500
            while received < 65535:
                data = await asyncio.to_thread(server.until, DataFrame, other.id)
                received += len(data.data)
            assert received == 65535
            await asyncio.to_thread(server.heard)
            assert other.queued == 100_000 - (65535 - 2500)

    uvloop.run(story())


Break = Callable[[RawServer, int], None]
BREAKS: dict[str, Break] = {
    "a push": lambda server, stream: server.send(
        PushPromiseFrame(stream, 2, b"", flags=["END_HEADERS"])
    ),
    "an answer to no call": lambda server, stream: server.send(server.headers(stream + 2, ANSWER)),
    "data on no call": lambda server, stream: server.send(DataFrame(stream + 2, b"x")),
    "a window on no call": lambda server, stream: server.send(
        WindowUpdateFrame(stream + 2, window_increment=5)
    ),
    "a reset of no call": lambda server, stream: server.send(RstStreamFrame(stream + 2)),
    "an interrupted header block": lambda server, stream: server.send(
        HeadersFrame(stream, b"\x88"), DataFrame(stream, b"x")
    ),
    "endless headers": lambda server, stream: server.send(
        HeadersFrame(stream, b"\x88"), *[ContinuationFrame(stream, bytes(MAX_FRAME))] * 5
    ),
    "a frame too long": lambda server, stream: server.socket.sendall(
        (MAX_FRAME + 1).to_bytes(3, "big") + bytes(6)
    ),
}


@pytest.mark.parametrize("what", sorted(BREAKS))
def test_a_server_that_breaks_the_protocol_is_left_with_a_reason(what: str) -> None:
    call = Call()

    async def story() -> None:
        async with client_and_server() as (connection, server):
            stream = connection.open(HEADERS, call)
            await asyncio.to_thread(server.called)
            # It may be left before it has sent all.
            with suppress(ConnectionError):
                await asyncio.to_thread(BREAKS[what], server, stream.id)
            goaway = await asyncio.to_thread(server.until, GoAwayFrame)
            assert goaway.error_code != 0
            assert goaway.additional_data.decode() == await connection.closed

    uvloop.run(story())
    assert call.seen == ["lost"]


BAD_ANSWERS: dict[str, tuple[Break, list[str]]] = {
    "headers within the answer": (
        lambda server, stream: server.send(
            server.headers(stream, ANSWER), server.headers(stream, FINE)
        ),
        ["headers", "reset 1"],
    ),
    "a malformed header": (
        lambda server, stream: server.send(server.headers(stream, [*ANSWER, (b"Upper", b"x")])),
        ["reset 1"],
    ),
    "more than the window": (
        lambda server, stream: server.send(
            server.headers(stream, ANSWER), *[DataFrame(stream, bytes(MAX_FRAME))] * 5
        ),
        ["headers", *["data"] * 4, "reset 3"],
    ),
    "a window that overflows": (
        lambda server, stream: server.send(WindowUpdateFrame(stream, window_increment=2**31 - 1)),
        ["reset 3"],
    ),
}


@pytest.mark.parametrize("what", sorted(BAD_ANSWERS))
def test_a_bad_answer_costs_its_call_alone(what: str) -> None:
    bad, good = Call(), Call()
    send, heard = BAD_ANSWERS[what]

    async def story() -> None:
        async with client_and_server() as (connection, server):
            streams = [connection.open(HEADERS, call) for call in (bad, good)]
            await asyncio.to_thread(server.called)
            await asyncio.to_thread(server.called)
            await asyncio.to_thread(send, server, streams[0].id)
            reset = await asyncio.to_thread(server.until, RstStreamFrame, streams[0].id)
            assert f"reset {reset.error_code}" == heard[-1]
            server.answer(streams[1].id)
            await asyncio.to_thread(server.heard)

    uvloop.run(story())
    assert bad.seen == heard
    assert good.seen == ["headers", "data", "trailers"]


def test_interim_headers_are_let_be_and_an_early_answer_ends_the_request() -> None:
    call = Call()

    async def story() -> None:
        async with client_and_server() as (connection, server):
            stream = connection.open(HEADERS, call)
            await asyncio.to_thread(server.called)
            server.send(server.headers(stream.id, [(b":status", b"103")]))
            server.answer(stream.id)
            reset = await asyncio.to_thread(server.until, RstStreamFrame, stream.id)
            assert reset.error_code == 0
            assert not connection.streams

    uvloop.run(story())
    assert call.seen == ["headers", "data", "trailers"]


def test_calls_above_the_last_one_that_a_leaving_server_names_are_lost_and_the_others_end() -> None:
    leaving: list[str] = []
    calls = [Call(), Call(), Call()]

    async def story() -> None:
        async with client_and_server(leaving.append) as (connection, server):
            streams = [connection.open(HEADERS, call) for call in calls]
            for _ in calls:
                await asyncio.to_thread(server.called)
            # As Go's servers leave: first all may still end, then only those that came in time.
            server.send(GoAwayFrame(0, last_stream_id=2**31 - 1, additional_data=b"bye"))
            await asyncio.to_thread(server.heard)
            assert connection.draining
            assert [call.seen for call in calls] == [[], [], []]
            server.send(GoAwayFrame(0, last_stream_id=streams[1].id))
            await asyncio.to_thread(server.heard)
            assert [call.seen for call in calls] == [[], [], ["lost"]]
            for stream in streams[:2]:
                server.answer(stream.id)
            # Nothing is left to be done on it.
            assert await asyncio.to_thread(lambda: list(server.frames())) is not None
            await connection.closed

    uvloop.run(story())
    assert leaving == ["leaving: bye"]
    assert [call.seen[-1] for call in calls] == ["trailers", "trailers", "lost"]


# Through the proxy.


@pytest.fixture
def runtime(run_dir: Path) -> Iterator[RawRuntime]:
    """A primary that speaks frame by frame."""
    runtime = RawRuntime(run_dir / "raw.sock")
    yield runtime
    runtime.stop()


@pytest.fixture
def front(
    start_proxy: Callable[..., RunningProxy],
    connect: Callable[[Path | str], Client],
    runtime: RawRuntime,
) -> tuple[RunningProxy, Client]:
    """A proxy in front of it, and a client."""
    proxy = start_proxy({"containerd": runtime.path})
    proxy.wait_until("containerd", answering=True)
    return proxy, connect(proxy.config.listen)


def status_of(client: Client, path: str) -> tuple[grpc.StatusCode, str]:
    """What a call ends with."""
    try:
        client.raw(path)(b"", timeout=20)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0x7, grpc.StatusCode.UNAVAILABLE),
        (0x8, grpc.StatusCode.CANCELLED),
        (0xB, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (0x2, grpc.StatusCode.INTERNAL),
    ],
    ids=["refused", "cancelled", "calm", "internal"],
)
def test_a_call_that_a_runtime_resets_ends_as_grpc_says_and_the_runtime_stays(
    runtime: RawRuntime,
    front: tuple[RunningProxy, Client],
    code: int,
    status: grpc.StatusCode,
) -> None:
    proxy, client = front
    runtime.instead[ODD] = lambda server, stream: server.send(
        RstStreamFrame(stream, error_code=code)
    )
    assert status_of(client, ODD)[0] == status
    assert status_of(client, QUICK)[0] == grpc.StatusCode.OK
    assert proxy.runtime("containerd").connects == 1


def test_no_more_calls_are_made_than_a_runtime_takes(
    runtime: RawRuntime, front: tuple[RunningProxy, Client]
) -> None:
    proxy, client = front
    under_way: list[tuple[RawServer, int]] = []
    began = threading.Event()

    def slow(server: RawServer, stream: int) -> None:
        server.settings(MAX_CONCURRENT_STREAMS=1)
        under_way.append((server, stream))
        began.set()

    runtime.instead[SLOW] = slow
    call = client.raw(SLOW).future(b"")
    assert began.wait(10)
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "1 calls open already")

    def is_refused() -> bool:
        code, message = status_of(client, QUICK)
        return code == refused[0] and refused[1] in message

    until(is_refused, timeout=10)
    server, stream = under_way[0]
    server.answer(stream)
    call.result(timeout=10)
    until(lambda: status_of(client, QUICK)[0] == grpc.StatusCode.OK, timeout=10)
    assert proxy.runtime("containerd").connects == 1


def test_a_runtime_that_leaves_ends_what_it_took_and_is_called_again_on_a_new_connection(
    runtime: RawRuntime, front: tuple[RunningProxy, Client]
) -> None:
    proxy, client = front
    taken: list[int] = []
    began = threading.Event()

    def slow(server: RawServer, stream: int) -> None:
        taken.append(stream)
        began.set()

    def leave(server: RawServer, stream: int) -> None:
        assert stream > taken[0]
        server.send(GoAwayFrame(0, last_stream_id=taken[0], additional_data=b"restarting"))
        server.heard()
        server.answer(taken[0])

    runtime.instead.update({SLOW: slow, ODD: leave})
    call = client.raw(SLOW).future(b"")
    assert began.wait(10)
    code, message = status_of(client, ODD)
    assert (code, "restarting" in message) == (grpc.StatusCode.UNAVAILABLE, True)
    assert call.result(timeout=10) == b""
    until(lambda: status_of(client, QUICK)[0] == grpc.StatusCode.OK)
    assert proxy.runtime("containerd").connects == 2


def test_a_runtime_with_an_endless_header_list_is_cut_off_and_called_again(
    runtime: RawRuntime, front: tuple[RunningProxy, Client]
) -> None:
    proxy, client = front
    runtime.instead[ODD] = BREAKS["endless headers"]
    code, message = status_of(client, ODD)
    assert (code, "header block too long" in message) == (grpc.StatusCode.UNAVAILABLE, True)
    until(lambda: status_of(client, QUICK)[0] == grpc.StatusCode.OK)
    assert proxy.runtime("containerd").connects == 2
