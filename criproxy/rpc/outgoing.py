"""What calls have in common that the proxy makes itself: their headers and their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from attrs import frozen

from criproxy.http2.frames import ErrorCode
from criproxy.http2.headers import Header, first
from criproxy.http2.stream import Sink, Stream
from criproxy.rpc.messages import Message, MessageReader
from criproxy.rpc.metadata import format_timeout, metadata_of
from criproxy.rpc.status import Code, RpcError, error_of, of_http, of_reset


class Opener(Protocol):
    """Where calls can be made: starts a stream with these headers."""

    def __call__(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Raises RpcError UNAVAILABLE when there is no connection."""


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
    """The headers of a call of ours."""
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


class Answer:
    """The sink of one outgoing call: collects what comes.

    Args:
        limit: bytes that a message may have.
        changed: called when there is a message more, or the end.

    Attributes:
        messages: those not taken yet.
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
        """Nobody is to hear of changes any more."""
        self._changed = _nothing

    def take(self) -> bytes:
        """The next message, unpacked; the server may send as much again.

        Raises:
            RpcError: when it does not unpack.
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
        """The call has ended with this status."""
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
        """A message larger than the window can only complete when more may come."""
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
        """The call was given up, by the server or for what it sent."""
        self.close(RpcError(of_reset(code), reason))

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""
        self.close(RpcError(Code.UNAVAILABLE, f"connection lost: {reason}"))

    def on_drained(self) -> None:
        """Requests are one message; nothing waits for its leaving."""


def _nothing() -> None:
    """Nobody wants to know."""
