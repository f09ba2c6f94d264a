"""A call relayed between a client and a runtime.

Headers, messages and trailers pass unchanged. The answer's messages are unpacked only for a
rewrite, and encoded again only if the rewrite changed them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from criproxy.http2.frames import ErrorCode, Header, first
from criproxy.http2.stream import Sink, Stream
from criproxy.rpc.incoming import CallFollower, ServerCall
from criproxy.rpc.messages import Code, MessageReader, RpcError, code_of, frame, of_http, of_reset
from criproxy.rpc.outgoing import Opener

#: Takes a message of the answer and returns it, or another one instead.
Rewrite = Callable[[bytes], bytes]

_READ_BY_US = frozenset((b"grpc-accept-encoding",))


class CallRelay(Sink, CallFollower):
    """Relays one call.

    Args:
        call: the client's side; its first message is there or will not come.
        opener: starts the runtime's side; may raise RpcError.
        where: names the runtime in messages.
        request: replaces the first message if an id or name in it had to change.
        rewrite: called with every message of the answer; None passes them undecoded.
        seconds: the call ends with DEADLINE_EXCEEDED after these; None leaves it to the client.
        limit: bytes that a message for `rewrite` may have.
        ended: called once with the status.
    """

    def __init__(
        self,
        call: ServerCall,
        opener: Opener,
        *,
        where: str,
        request: bytes | None = None,
        rewrite: Rewrite | None = None,
        seconds: float | None = None,
        limit: int = 1 << 30,
        ended: Callable[[Code], None],
    ) -> None:
        self._call = call
        self._where = where
        self._rewrite = rewrite
        self._ended: Callable[[Code], None] | None = ended
        self._reader = MessageReader(limit)
        self._limit = limit
        self._encoding: bytes | None = None
        self._unread = 0
        self._owed = 0
        self._timer: asyncio.TimerHandle | None = None
        headers: Sequence[Header] = call.headers
        if rewrite is not None:
            # Ask the runtime not to compress what is decoded here; some compress anyway.
            headers = [h for h in headers if h[0] not in _READ_BY_US]
        self._stream: Stream = opener(headers, self)
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._too_late, seconds)
        first_message = b"" if call.message is None else call.message.raw
        if request is not None:
            first_message = frame(request)
        rest = call.follow(self)
        if first_message or rest or call.request_ended:
            self._stream.send_data(first_message + rest, call.request_ended)

    # Called by the client's side.

    def client_data(self, data: bytes, ended: bool) -> None:
        """Pass more of the request on."""
        self._stream.send_data(data, ended)
        if not self._stream.queued:
            self._call.stream.consumed(len(data))
        else:
            self._unread += len(data)

    def client_gone(self) -> None:
        """Cancel the runtime's side."""
        self._stream.reset(ErrorCode.CANCEL)
        self._end(Code.CANCELLED)

    def client_drained(self) -> None:
        """Let the runtime send more."""
        self._take()

    # Called by the runtime's side.

    def on_headers(self, headers: list[Header], ended: bool) -> None:
        """Pass the answer's headers on."""
        self._encoding = first(headers, b"grpc-encoding")
        if not ended:
            self._call.send_headers(headers)
            return
        code = (
            of_http(first(headers, b":status"))
            if first(headers, b"grpc-status") is None
            else code_of(headers)
        )
        self._call.close_with(headers, code)
        self._end(code)

    def on_data(self, data: bytes, ended: bool) -> None:
        """Pass the answer's bytes on, rewritten if there is a rewrite."""
        if self._rewrite is None:
            self._call.stream.send_data(data)
        else:
            self._reader.feed(data)
            try:
                self._rewritten()
            except RpcError as error:
                self._fail(error)
                return
        self._owed += len(data)
        self._take()
        if ended:
            self._fail(RpcError(Code.INTERNAL, f"{self._where} ended its answer without a status"))

    def on_trailers(self, headers: list[Header]) -> None:
        """Pass the end of the answer on."""
        code = code_of(headers)
        self._call.close_with(headers, code)
        self._end(code)

    def on_reset(self, code: int, reason: str) -> None:
        """The call was reset, by the runtime or for what it sent."""
        self._fail(RpcError(of_reset(code), f"{self._where}: {reason}"))

    def on_lost(self, reason: str) -> None:
        """The runtime is gone."""
        self._fail(RpcError(Code.UNAVAILABLE, f"{self._where} went away during the call: {reason}"))

    def on_drained(self) -> None:
        """The runtime has taken what the client sent."""
        if self._unread:
            self._call.stream.consumed(self._unread)
            self._unread = 0

    def _take(self) -> None:
        """Allow the runtime more bytes once the client has taken all."""
        if self._owed and not self._call.stream.queued:
            self._stream.consumed(self._owed)
            self._owed = 0

    def _rewritten(self) -> None:
        assert self._rewrite is not None
        while (message := self._reader.next()) is not None:
            payload = message.payload(self._encoding, self._limit)
            changed = self._rewrite(payload)
            raw = message.raw if changed is payload else frame(changed)
            self._call.stream.send_data(raw)

    def _too_late(self, seconds: float) -> None:
        self._fail(
            RpcError(Code.DEADLINE_EXCEEDED, f"{self._where} did not answer within {seconds:g} s")
        )

    def _fail(self, error: RpcError) -> None:
        self._stream.reset(ErrorCode.CANCEL)
        self._call.fail(error)
        self._end(error.code)

    def _end(self, code: Code) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(code)
