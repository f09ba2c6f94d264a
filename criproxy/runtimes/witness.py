"""Whether a call's error is the runtime's own word, or stands for a word that never came."""

from __future__ import annotations

import time
from collections.abc import Sequence

from criproxy.http2.headers import Header, first
from criproxy.http2.stream import NOBODY, Sink, Stream
from criproxy.rpc.outgoing import Opener
from criproxy.rpc.status import Code, RpcError

#: Statuses of calls that were not answered.
_SILENCE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
#: A runtime that keeps the deadline of our call itself can be a little faster than we are.
_NEARLY = 0.9


class NotAnswered(RpcError):
    """A runtime gave a call no answer: it is away or silent, or was not in time."""


class Witness:
    """Stands between a call and its stream, and remembers whether the runtime said how it ended.

    Args:
        opener: where the call is made.
        timeout: seconds that the runtime was told it has.

    Attributes:
        answered: whether the call ended with a status of the runtime's.
    """

    __slots__ = ("_opener", "_sink", "_started", "_timeout", "answered")

    def __init__(self, opener: Opener, timeout: float | None = None) -> None:
        self._opener = opener
        self._sink: Sink = NOBODY
        self._started = time.monotonic()
        self._timeout = timeout
        self.answered = False

    def open(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Start the call."""
        self._sink = sink
        return self._opener(headers, self)

    def heard(self, error: RpcError, *, leaving: bool = False) -> RpcError:
        """The error that the call ended with, as a `NotAnswered` if it is none of the runtime's.

        Args:
            error: what the call ended with.
            leaving: whether the runtime has gone or is about to: it may have ended all calls then.
        """
        own = self.answered and not leaving and self._in_time(error)
        if error.code == Code.CANCELLED or (error.code in _SILENCE and not own):
            return NotAnswered(error.code, error.message, error.trailers)
        return error

    def _in_time(self, error: RpcError) -> bool:
        if error.code != Code.DEADLINE_EXCEEDED or self._timeout is None:
            return True
        return time.monotonic() - self._started < _NEARLY * self._timeout

    def on_headers(self, headers: list[Header], ended: bool) -> None:
        """Pass them on."""
        if ended:
            self.answered = first(headers, b"grpc-status") is not None
        self._sink.on_headers(headers, ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        """Pass it on."""
        self._sink.on_data(data, ended)

    def on_trailers(self, headers: list[Header]) -> None:
        """Pass them on."""
        self.answered = first(headers, b"grpc-status") is not None
        self._sink.on_trailers(headers)

    def on_reset(self, code: int, reason: str) -> None:
        """Pass it on."""
        self._sink.on_reset(code, reason)

    def on_lost(self, reason: str) -> None:
        """Pass it on."""
        self._sink.on_lost(reason)

    def on_drained(self) -> None:
        """Pass it on."""
        self._sink.on_drained()
