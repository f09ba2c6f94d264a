"""Calls with a stream of answers that the proxy makes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from criproxy.http2.frames import ErrorCode
from criproxy.http2.headers import Header
from criproxy.rpc.messages import frame
from criproxy.rpc.outgoing import Answer, Opener, request_headers
from criproxy.rpc.status import Code


async def streaming(
    opener: Opener,
    path: str,
    request: bytes,
    *,
    metadata: Sequence[Header] = (),
    timeout: float | None = None,
    limit: int,
) -> AsyncGenerator[bytes, None]:
    """Make a server-streaming call and yield its messages.

    The server is held back while the messages are not taken.

    Args:
        opener: the connection.
        path: `/service/method`.
        request: the message.
        metadata: the caller's metadata.
        timeout: seconds until the caller's deadline; the server is told.
        limit: bytes that a message may have.

    Raises:
        RpcError: when the call ends with another status than OK.
    """
    changed = asyncio.Event()
    answer = Answer(limit, changed.set)
    stream = opener(request_headers(path, metadata, timeout), answer)
    answer.stream = stream
    stream.send_data(frame(request), ended=True)
    try:
        while True:
            changed.clear()
            while answer.messages:
                yield answer.take()
            if answer.end is not None:
                break
            await changed.wait()
    finally:
        stream.reset(ErrorCode.CANCEL)
    if answer.end.code != Code.OK:
        raise answer.end
