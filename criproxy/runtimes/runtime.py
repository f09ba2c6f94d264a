"""One runtime as the routes see it: calls to it, and its last known items."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from criproxy.config import RuntimeConfig
from criproxy.http2.frames import Header
from criproxy.http2.stream import Sink, Stream
from criproxy.methods import BY_NAME, Method, parse_response
from criproxy.rpc.messages import Code, RpcError
from criproxy.rpc.outgoing import Done, Opener, Reply, UnaryCall, awaited, streaming
from criproxy.runtimes.availability import (
    LOOP_HEADER,
    Availability,
    NotAnswered,
    TimedOutMethods,
    judged,
    leads_back,
)
from criproxy.runtimes.last_known import INVENTORY

#: Called with runtime, method, code and seconds of every call to a runtime.
Record = Callable[[str, str, Code, float], None]


class Runtime(Availability):
    """A runtime behind the proxy.

    Args:
        config: the runtime's configuration.
        primary: whether it gets everything that no other runtime claims.
        grace: seconds for which its last known items are served while it is away.
        identity: of this proxy; sent with every call.
        record: called at the end of every call.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        primary: bool,
        grace: float,
        identity: bytes,
        record: Record,
    ) -> None:
        super().__init__(config, grace)
        self.primary = primary
        #: The last UpdateRuntimeConfig request; sent again when the runtime connects.
        self.last_update: bytes | None = None
        self._identity = identity
        self._loop_header: Header = (LOOP_HEADER, identity)
        self._record = record
        self._late = TimedOutMethods(
            self.where,
            config.limits.read_seconds,
            config.dial.longest_wait,
            lambda method, seconds, done: self.start_call(method, b"", timeout=seconds, done=done),
            self._silent_if_there,
        )

    # Calls.

    def open(self, headers: Sequence[Header], sink: Sink) -> Stream:
        """Start a call.

        Raises:
            RpcError: UNAVAILABLE if the runtime is away or silent, RESOURCE_EXHAUSTED if it has as
                many calls open as it or the configuration allows.
        """
        connection = self._connection
        if connection is None or self.away_since is not None:
            raise self.away_error()
        allowed = min(self.config.limits.calls, connection.peer_max_streams)
        if len(connection.streams) >= allowed:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"{self.where} has {allowed} calls open already"
            )
        return connection.open(headers, sink)

    def recorder(self, method: str) -> Callable[[Code], None]:
        """Start the clock; return a function that records the end of the call."""
        start = time.monotonic()
        return lambda code: self._record(self.name, method, code, time.monotonic() - start)

    def read_timeout(self, remaining: float | None) -> float:
        """Return the seconds to wait for an answer that is merged with those of other runtimes."""
        limit = self.config.limits.read_seconds
        return limit if remaining is None else min(limit, remaining)

    def start_call(
        self,
        method: Method,
        request: bytes,
        *,
        metadata: Sequence[Header] = (),
        timeout: float | None = None,
        watched: bool = True,
        opener: Opener | None = None,
        done: Done,
    ) -> UnaryCall:
        """Make a unary call; `done` is called with its answer or error."""
        started = time.monotonic()

        def ended(result: Reply | RpcError) -> None:
            seconds = time.monotonic() - started
            if isinstance(result, RpcError):
                self._record(self.name, method.name, result.code, seconds)
                result = self._judged(result, seconds, timeout)
            else:
                self._record(self.name, method.name, Code.OK, seconds)
            done(result)

        return UnaryCall(
            opener or self.open,
            method.path,
            request,
            metadata=(*metadata, self._loop_header),
            timeout=timeout,
            watched=watched,
            limit=self.config.limits.message_bytes,
            done=ended,
        )

    async def call(
        self,
        method: Method,
        request: bytes,
        *,
        metadata: Sequence[Header] = (),
        timeout: float | None = None,
        opener: Opener | None = None,
    ) -> Reply:
        """Make a unary call.

        Raises:
            RpcError: with the call's status.
        """
        return await awaited(
            lambda done: (
                self.start_call(
                    method,
                    request,
                    metadata=metadata,
                    timeout=timeout,
                    opener=opener,
                    done=done,
                ).cancel
            )
        )

    async def ask(
        self,
        method: Method,
        request: bytes,
        *,
        metadata: Sequence[Header] = (),
        remaining: float | None = None,
    ) -> Reply:
        """Make a unary call that must not take longer than `read_seconds`.

        Args:
            method, request, metadata: as in `call`.
            remaining: seconds until the client's deadline.

        Raises:
            RpcError: with the call's status; UNAVAILABLE if it took longer, or did lately.
        """
        if method.name in self._late:
            raise self.gap_error(method)
        timeout = self.read_timeout(remaining)
        try:
            return await self.call(method, request, metadata=metadata, timeout=timeout)
        except RpcError as error:
            late = isinstance(error, NotAnswered) and error.code == Code.DEADLINE_EXCEEDED
            if not late or timeout == remaining:
                raise
            self.note_late(method, timeout)
            message = f"{self.where}: no answer to {method.name} within {timeout:g} s"
            raise NotAnswered(Code.UNAVAILABLE, message) from error

    async def stream(
        self, method: Method, request: bytes, *, metadata: Sequence[Header] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Make a streaming call and yield its messages.

        Raises:
            RpcError: with the call's status, when it is not OK.
        """
        record = self.recorder(method.name)
        code = Code.CANCELLED
        messages = streaming(
            self.open,
            method.path,
            request,
            metadata=(*metadata, self._loop_header),
            limit=self.config.limits.message_bytes,
        )
        try:
            async with aclosing(messages):
                async for message in messages:
                    yield message
            code = Code.OK
        except RpcError as error:
            code = error.code
            raise self._judged(error) from error
        finally:
            record(code)

    def note_late(self, method: Method, seconds: float) -> None:
        """Note that a method was not answered in time."""
        if self.answering:
            self._late.add(method, seconds, self.last)

    def _silent_if_there(self, reason: str) -> None:
        if self.answering:
            self.set_silent(reason)

    def set_answering(self) -> None:
        """Note that the runtime has answered."""
        if not self.answering:
            self._late.clear()
        super().set_answering()

    def reads(self, method: Method) -> bool:
        """Whether it is expected to answer this method in time."""
        return self.away_since is None and method.name not in self._late

    def may_fill_in(self, method: Method) -> bool:
        """Whether its last known items may be served instead of an answer."""
        age = time.monotonic() - self._late.since(method.name)
        return self.within_grace() and (age < self.grace or method.name not in self._late)

    def gap_error(self, method: Method) -> NotAnswered:
        """Return the error of a call without an answer and without last known items."""
        reason = self._late.reason(method.name)
        if not self.answering or not reason:
            return self.away_error()
        age = time.monotonic() - self._late.since(method.name)
        return NotAnswered(
            Code.UNAVAILABLE, f"{self.where} ({self.config.socket}): {reason}, for {age:.0f} s"
        )

    def set_pending_update(self, request: bytes) -> None:
        """Note that the runtime must get this UpdateRuntimeConfig request."""
        self.last_update = self.last.pending_update = request

    def update_sent(self, request: bytes, error: RpcError | None = None) -> None:
        """Note that the runtime got the request, and its error if it failed."""
        again = isinstance(error, NotAnswered) or (error and error.code == Code.UNAVAILABLE)
        if not again and self.last.pending_update is request:
            self.last.pending_update = None

    def _judged(
        self, error: RpcError, seconds: float = 0.0, timeout: float | None = None
    ) -> RpcError:
        """Return an error as the routes see it: a runtime that leads back to us counts as away."""
        error = judged(error, seconds=seconds, timeout=timeout, leaving=not self.answering)
        if not leads_back(error, self._identity):
            return error
        reason = "its socket leads back to this criproxy: a loop"
        self.set_looped(reason)
        return NotAnswered(Code.UNAVAILABLE, reason)

    # Last known items.

    def handlers(self) -> frozenset[str]:
        """Return the RuntimeClass handlers that it serves by configuration or by its Status."""
        raw = self.last.answers.get("Status")
        own: Iterable[Any] = ()
        if raw is not None:
            own = parse_response(BY_NAME["Status"], raw, self.where).runtime_handlers
        return frozenset(self.config.handlers) | {h.name for h in own if h.name}

    async def update_inventory(
        self, names: Sequence[str] = INVENTORY, opener: Opener | None = None
    ) -> None:
        """Ask for the inventory and store it; images and handlers may fail.

        Raises:
            RpcError: if pods or containers could not be listed.
        """
        await asyncio.gather(*(self._update_list(name, opener) for name in names))

    def outdated_inventory(self, age: float) -> list[str]:
        """Return the outdated methods of the inventory that are not being asked for already."""
        return [name for name in self.last.outdated(age) if name not in self._late]

    async def _update_list(self, name: str, opener: Opener | None) -> None:
        asked = time.monotonic()
        method = BY_NAME[name]
        seconds = self.config.limits.read_seconds
        try:
            reply = await self.call(method, b"", timeout=seconds, opener=opener)
            parse_response(method, reply.payload, self.where)
        except RpcError as error:
            if isinstance(error, NotAnswered) and error.code == Code.DEADLINE_EXCEEDED:
                self.note_late(method, seconds)
            if name in ("ListPodSandbox", "ListContainers"):
                raise
            return
        self.last.store(name, reply.payload, asked)

    def last_answer(self, method: Method) -> Any | None:
        """Return the last complete answer to a method with the changes since, or None.

        Raises:
            RpcError: INTERNAL if the answer was malformed.
        """
        known = self.last.answer(method.name)
        if known is None:
            return None
        return known.edited(parse_response(method, known.raw, self.where))
