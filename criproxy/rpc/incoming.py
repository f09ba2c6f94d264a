"""A call that a client makes of the proxy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from criproxy.http2.frames import Header, first
from criproxy.http2.stream import Sink, Stream
from criproxy.rpc.messages import (
    Code,
    Message,
    MessageReader,
    RpcError,
    error_of,
    frame,
    metadata_of,
    parse_timeout,
    trailers_of,
)

log = logging.getLogger(__name__)

_RESPONSE_HEADERS: tuple[Header, ...] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
)
#: Bytes that the client may leave unread before a stream of answers is paused.
_HELD_BACK = 1 << 20


class CallFollower:
    """Takes over the client's side of a call once it is routed; the methods here do nothing."""

    def client_data(self, data: bytes, ended: bool) -> None:
        """Take more of the request."""

    def client_gone(self) -> None:
        """The client cancelled, or its connection is gone."""

    def client_drained(self) -> None:
        """The client has taken all that was sent."""


class ServerCall(Sink):
    """One call: its request until it is routed, then its answer.

    Args:
        stream: the client's stream.
        headers: the request's headers.
        ended: whether the request ended with them.
        limit: bytes that the first message may have.
        route: called once the first message is there (or the request ended without one).
        done: called when the call has ended, with its status.
    """

    def __init__(
        self,
        stream: Stream,
        headers: list[Header],
        ended: bool,
        limit: int,
        route: Callable[[ServerCall], None],
        done: Callable[[ServerCall, Code], None],
    ) -> None:
        self.stream = stream
        self.headers = headers
        self.path = (first(headers, b":path") or b"").decode(errors="replace")
        self.method = self.path.rpartition("/")[2]
        self.message: Message | None = None
        self.started = time.monotonic()
        self.deadline: float | None = None
        self.runtime = ""
        #: Ids of the call's subjects that are not in the request, for its log line.
        self.subjects: dict[str, str] = {}
        #: The message of the call's status.
        self.problem = ""
        #: Whether the call goes on until the client ends it.
        self.endless = False
        self.finished = False
        self.request_ended = ended
        self._limit = limit
        self._route = route
        self._done = done
        self._reader = MessageReader(limit)
        self._follower: CallFollower | None = None
        self._task: asyncio.Task[None] | None = None
        self._metadata: Sequence[Header] | None = None
        self._headers_sent = False
        self._draining: list[asyncio.Future[None]] = []

    def start(self) -> None:
        """Check the headers; route at once if no message will come."""
        content_type = first(self.headers, b"content-type") or b""
        if not content_type.startswith(b"application/grpc"):
            self.stream.send_headers([(b":status", b"415")], ended=True)
            self._end(Code.INTERNAL)
            return
        try:
            timeout = first(self.headers, b"grpc-timeout")
            if timeout is not None:
                self.deadline = self.started + parse_timeout(timeout)
            if self.request_ended:
                self._route(self)
        except RpcError as error:
            self.fail(error)

    # For handlers: the request.

    @property
    def metadata(self) -> Sequence[Header]:
        """The client's metadata."""
        if self._metadata is None:
            self._metadata = metadata_of(self.headers)
        return self._metadata

    def payload(self) -> bytes:
        """Return the first message.

        Raises:
            RpcError: if there is none or it does not unpack.
        """
        if self.message is None:
            raise RpcError(Code.INVALID_ARGUMENT, f"{self.method} was called without a message")
        return self.message.payload(first(self.headers, b"grpc-encoding"), self._limit)

    def remaining(self) -> float | None:
        """Seconds until the client's deadline, or None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def follow(self, follower: CallFollower) -> bytes:
        """Hand the client's side over; return the request's bytes after the first message."""
        if not self.finished:
            self._follower = follower
        rest = self._reader.rest()
        self.stream.consumed(len(rest))
        return rest

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer from a task, which is cancelled when the client goes."""
        self._task = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RpcError as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(RpcError(Code.CANCELLED, "the call was cancelled"))
        except Exception:
            log.exception("%s failed", self.path)
            self.fail(RpcError(Code.INTERNAL, f"criproxy failed in {self.method}; see its log"))
        finally:
            self._task = None

    # For handlers: the answer.

    def send_headers(self, headers: Sequence[Header]) -> None:
        """Pass a runtime's response headers on unchanged."""
        if not self.finished:
            self._headers_sent = True
            self.stream.send_headers(headers)

    def send_metadata(self, metadata: Sequence[Header]) -> None:
        """Start the proxy's own answer with this initial metadata."""
        self.send_headers([*_RESPONSE_HEADERS, *metadata])

    def send_message(self, payload: bytes) -> None:
        """Send one message."""
        if not self._headers_sent:
            self.send_metadata(())
        self.stream.send_data(frame(payload))

    def finish(self, code: Code = Code.OK, message: str = "", extra: Sequence[Header] = ()) -> None:
        """End the call with the proxy's own status."""
        if self.finished:
            return
        self.problem = message
        trailers = trailers_of(code, message, extra)
        if self._headers_sent:
            self.stream.send_trailers(trailers)
        else:
            self.stream.send_headers([*_RESPONSE_HEADERS, *trailers], ended=True)
        # Send it before metrics and log lines are written.
        self.stream.flush()
        self._end(code)

    def fail(self, error: RpcError) -> None:
        """End the call with an error."""
        self.finish(error.code, error.message, error.trailers)

    def close_with(self, headers: Sequence[Header], code: Code) -> None:
        """End the call with a runtime's trailers, or its only headers, unchanged."""
        if self.finished:
            return
        if self._headers_sent:
            self.stream.send_trailers(headers)
        else:
            self.stream.send_headers(headers, ended=True)
        if code != Code.OK:
            self.problem = error_of(headers).message
        self._end(code)

    async def drained(self) -> None:
        """Wait while the client has much unread."""
        while self.stream.queued > _HELD_BACK and not self.finished:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._draining.append(waiter)
            await waiter

    def cancel(self) -> None:
        """End the call because the proxy stops; the client may call again."""
        task, follower = self._task, self._follower
        self.fail(RpcError(Code.UNAVAILABLE, "criproxy is stopping; call again"))
        _let_go(task, follower)

    # Called by the stream.

    def on_data(self, data: bytes, ended: bool) -> None:
        """Collect the first message and route the call, or pass the bytes to the follower."""
        self.request_ended = ended
        if self._follower is not None:
            self._follower.client_data(data, ended)
            return
        if self.finished:
            return
        self._reader.feed(data)
        if self.message is not None:
            # Not handed over yet: early bytes wait, bounded by the stream's window.
            return
        self.stream.consumed(len(data))
        try:
            self.message = self._reader.next()
            if self.message is not None or ended:
                if self.message is None and self._reader.pending:
                    raise RpcError(Code.INVALID_ARGUMENT, "the request ended within a message")
                self._route(self)
        except RpcError as error:
            self.fail(error)

    def on_reset(self, code: int, reason: str) -> None:
        """The client gave the call up."""
        self._leave()

    def on_lost(self, reason: str) -> None:
        """The client's connection is gone."""
        self._leave()

    def on_drained(self) -> None:
        """The client has taken what was sent."""
        if self._follower is not None:
            self._follower.client_drained()
        # Several runtimes may write to one answer and wait.
        waiting, self._draining = self._draining, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _leave(self) -> None:
        if self.finished:
            return
        task, follower = self._task, self._follower
        self._end(Code.CANCELLED)
        _let_go(task, follower)

    def _end(self, code: Code) -> None:
        self.finished = True
        self._follower = None
        self._done(self, code)


def _let_go(task: asyncio.Task[None] | None, follower: CallFollower | None) -> None:
    if task is not None:
        task.cancel()
    if follower is not None:
        follower.client_gone()
