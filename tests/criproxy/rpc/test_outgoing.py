"""Streams of answers that the proxy asks for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import uvloop

from criproxy.rpc.messages import frame
from criproxy.rpc.outgoing import streaming
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.criproxy.http2.raw import ANSWER, FINE, client_and_server
from virtlet.cri import api_pb2 as cri

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
