"""Unary calls that the proxy makes itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from criproxy.http2.frames import ErrorCode
from criproxy.http2.headers import Header
from criproxy.http2.stream import Stream
from criproxy.rpc.messages import frame
from criproxy.rpc.outgoing import Answer, Opener, Reply, request_headers
from criproxy.rpc.status import Code, RpcError

_T = TypeVar("_T")
#: Called once with the answer, or with the error that the call ended with.
Done = Callable[[Reply | RpcError], None]


class UnaryCall:
    """One call, from its start to its answer.

    A callback instead of a coroutine: an answer made of several runtimes' is sent in the very turn
    of the event loop in which the last of them comes.

    Args:
        opener: the connection.
        path: `/service/method`.
        request: the message.
        metadata: the caller's metadata.
        timeout: seconds; passed on as the deadline.
        watched: whether the timeout is kept here too, not only by the server. Not needed when the
            caller ends the call by then anyway.
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
        """Give the call up; `done` is not called any more."""
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
            # Does nothing when the call has ended by itself.
            self._stream.reset(ErrorCode.CANCEL)


async def awaited(start: Callable[[Callable[[_T | RpcError], None]], Callable[[], None]]) -> _T:
    """Wait for what calls back.

    Args:
        start: gets the callback, starts the work and returns what gives it up.

    Raises:
        RpcError: when the callback was called with one.
    """
    answered: asyncio.Future[_T | RpcError] = asyncio.get_running_loop().create_future()

    def done(result: _T | RpcError) -> None:
        # The waiting task may have been cancelled just before.
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
