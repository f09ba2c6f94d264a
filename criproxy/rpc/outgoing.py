"""Calls that the proxy makes itself, unary and with a stream of answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import cache
from typing import Protocol, TypeVar

from attrs import frozen

from criproxy.http2.frames import ErrorCode, Header, first
from criproxy.http2.stream import Sink, Stream
from criproxy.rpc.messages import (
    Code,
    Message,
    MessageReader,
    RpcError,
    error_of,
    format_timeout,
    frame,
    metadata_of,
    of_http,
    of_reset,
)


class Opener(Protocol):
    """Starts a call with these headers."""

    def __call__(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Raise RpcError UNAVAILABLE without a connection."""


@frozen
class Reply:
    """A unary call's answer.

    Args:
        payload: the message.
        metadata: initial metadata.
        trailers: trailing metadata, without the status.
    """

    payload: bytes
    metadata: Sequence[Header] = ()
    trailers: Sequence[Header] = ()


def request_headers(path: str, metadata: Sequence[Header], timeout: float | None) -> list[Header]:
    """Return the headers of the proxy's own call."""
    headers = [*_constant_headers(path)]
    if timeout is not None:
        headers.append((b"grpc-timeout", format_timeout(timeout)))
    headers.extend(metadata)
    return headers


@cache
def _constant_headers(path: str) -> tuple[Header, ...]:
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"criproxy"),
        (b"te", b"trailers"),
    )


class Answer(Sink):
    """The sink of one outgoing call; collects the answer.

    Args:
        limit: bytes that a message may have.
        changed: called on every message and at the end.

    Attributes:
        messages: the messages that were not taken yet.
        metadata: initial metadata.
        end: the status, an error even when it is OK, once the call has ended.
    """

    def __init__(self, limit: int, changed: Callable[[], None]) -> None:
        self._reader = MessageReader(limit)
        self._limit = limit
        self._encoding: bytes | None = None
        self._changed = changed
        self._credited = 0
        self.stream: Stream | None = None
        self.messages: deque[Message] = deque()
        self.metadata: list[Header] = []
        self.end: RpcError | None = None
        self.status: bytes | None = None

    def forget(self) -> None:
        """Stop calling `changed`."""
        self._changed = _nothing

    def take(self) -> bytes:
        """Return the next message, unpacked; allow the server as many bytes again.

        Raises:
            RpcError: if it does not unpack.
        """
        message = self.messages.popleft()
        size = len(message.raw)
        early = min(size, self._credited)
        self._credited -= early
        if self.stream is not None:
            self.stream.consumed(size - early)
        if not self.messages:
            self._credit(self._reader.pending - self._credited)
        return message.payload(self._encoding, self._limit)

    def close(self, error: RpcError) -> None:
        """End the call with this status, unless it has ended."""
        if self.end is None:
            self.end = error
            self._changed()

    def on_headers(self, headers: list[Header], ended: bool) -> None:
        """Keep the metadata."""
        self.status = first(headers, b":status")
        self._encoding = first(headers, b"grpc-encoding")
        if ended:
            self.on_trailers(headers)
        else:
            self.metadata = metadata_of(headers)

    def on_data(self, data: bytes, ended: bool) -> None:
        """Collect messages."""
        self._reader.feed(data)
        try:
            while (message := self._reader.next()) is not None:
                self.messages.append(message)
        except RpcError as error:
            self.close(error)
            if self.stream is not None:
                self.stream.reset(ErrorCode.CANCEL)
            return
        if self.messages:
            self._changed()
        else:
            self._credit(len(data))
        if ended:
            self.close(RpcError(of_http(self.status), "the answer has no gRPC status"))

    def _credit(self, size: int) -> None:
        """Allow more bytes before a message is complete: it may be larger than the window."""
        if self.stream is not None:
            self.stream.consumed(size)
            self._credited += size

    def on_trailers(self, headers: list[Header]) -> None:
        """The call has ended."""
        if first(headers, b"grpc-status") is None:
            self.close(RpcError(of_http(self.status), "the answer has no gRPC status"))
        else:
            self.close(error_of(headers))

    def on_reset(self, code: int, reason: str) -> None:
        """The call was reset, by the server or for what it sent."""
        self.close(RpcError(of_reset(code), reason))

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""
        self.close(RpcError(Code.UNAVAILABLE, f"connection lost: {reason}"))


def _nothing() -> None:
    """Do nothing."""


_T = TypeVar("_T")
#: Called once with the answer, or with the call's error.
Done = Callable[[Reply | RpcError], None]


class UnaryCall:
    """One unary call.

    It has a callback instead of a coroutine, so that a merged answer is sent in the turn of the
    event loop in which its last part arrives.

    Args:
        opener: the connection.
        path: `/service/method`.
        request: the message.
        metadata: the caller's metadata.
        timeout: seconds; passed on as the deadline.
        watched: whether to enforce the timeout here too, not only at the server. Not needed if the
            caller ends the call by then.
        limit: bytes that the answer may have.
        done: called once, maybe before the constructor returns.
    """

    def __init__(
        self,
        opener: Opener,
        path: str,
        request: bytes,
        *,
        metadata: Sequence[Header] = (),
        timeout: float | None = None,
        watched: bool = True,
        limit: int,
        done: Done,
    ) -> None:
        self._done: Done | None = done
        self._answer = Answer(limit, self._changed)
        self._timer: asyncio.TimerHandle | None = None
        self._stream: Stream | None = None
        try:
            stream = opener(request_headers(path, metadata, timeout), self._answer)
        except RpcError as error:
            self._finish(error)
            return
        self._stream = self._answer.stream = stream
        stream.send_data(frame(request), ended=True)
        if timeout is not None and watched:
            self._timer = asyncio.get_running_loop().call_later(timeout, self._too_late, timeout)

    def cancel(self) -> None:
        """Cancel the call; `done` is not called."""
        self._done = None
        self._leave()

    def _too_late(self, seconds: float) -> None:
        self._answer.close(RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {seconds:g} s"))

    def _changed(self) -> None:
        end = self._answer.end
        if end is None:
            return
        if end.code != Code.OK:
            self._finish(end)
            return
        messages = self._answer.messages
        if len(messages) != 1:
            self._finish(RpcError(Code.INTERNAL, f"{len(messages)} messages answer a unary call"))
            return
        try:
            payload = self._answer.take()
        except RpcError as error:
            self._finish(error)
            return
        self._finish(Reply(payload, self._answer.metadata, end.trailers))

    def _finish(self, result: Reply | RpcError) -> None:
        self._leave()
        if self._done is not None:
            done, self._done = self._done, None
            done(result)

    def _leave(self) -> None:
        self._answer.forget()
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            # This does nothing if the call has ended.
            self._stream.reset(ErrorCode.CANCEL)


async def awaited(start: Callable[[Callable[[_T | RpcError], None]], Callable[[], None]]) -> _T:
    """Wait for a callback.

    Args:
        start: gets the callback, starts the work and returns a function that cancels it.

    Raises:
        RpcError: if the callback was called with one.
    """
    answered: asyncio.Future[_T | RpcError] = asyncio.get_running_loop().create_future()

    def done(result: _T | RpcError) -> None:
        # The waiting task may be cancelled already.
        if not answered.done():
            answered.set_result(result)

    give_up = start(done)
    try:
        result = await answered
    finally:
        give_up()
    if isinstance(result, RpcError):
        raise result
    return result


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

    The server is paused while the messages are not taken.

    Args:
        opener: the connection.
        path: `/service/method`.
        request: the message.
        metadata: the caller's metadata.
        timeout: seconds until the caller's deadline; sent to the server.
        limit: bytes that a message may have.

    Raises:
        RpcError: if the call ends with another status than OK.
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
