"""The Stream* lists: the messages of all runtimes, asked in parallel, in one stream.

A runtime without the streaming method is asked by the unary one, whose answer has the same encoding
as one message of the stream. If the primary does not know the method, the call fails: a kubelet
then uses the unary calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from attrs import frozen

from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.routes.merged_list import Filtered, label_changes
from criproxy.routes.one_runtime import forward
from criproxy.routes.runtime_part import Question, named, outside_of, read, together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.availability import NotAnswered
from criproxy.runtimes.runtime import Runtime

#: The unary method for each.
UNARY: Mapping[str, str] = {
    "StreamPodSandboxes": "ListPodSandbox",
    "StreamContainers": "ListContainers",
    "StreamContainerStats": "ListContainerStats",
    "StreamPodSandboxStats": "ListPodSandboxStats",
    "StreamPodSandboxMetrics": "ListPodSandboxMetrics",
    "StreamImages": "ListImages",
}


@frozen
class MergedStream:
    """Routes the calls.

    Args:
        filtered: narrows a filtered list to the runtimes that can have the items.
    """

    filtered: Filtered

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Answer a list."""
        raw = call.payload()
        request = parse_request(method, raw)
        if self.filtered.cut_short(request):
            call.run(self._completed(call, method, request, raw))
        elif work := self._start(call, method, request, raw):
            call.run(work)

    async def _completed(self, call: ServerCall, method: Method, request: Any, raw: bytes) -> None:
        if await self.filtered.complete(request):
            raw = request.SerializeToString()
        if work := self._start(call, method, request, raw):
            await work

    def _start(
        self, call: ServerCall, method: Method, request: Any, raw: bytes
    ) -> Coroutine[Any, Any, None] | None:
        """Pass the call on, or return the coroutine that answers it."""
        runtimes, changed = self.filtered.narrow(request)
        if changed:
            raw = request.SerializeToString()
        if len(runtimes) == 1 and runtimes[0].primary and runtimes[0].answering:
            forward(call, runtimes[0], method, None if raw == call.payload() else request)
            return None
        return self._answer(call, method, raw, runtimes)

    async def _answer(
        self, call: ServerCall, method: Method, raw: bytes, runtimes: tuple[Runtime, ...]
    ) -> None:
        known = asyncio.Event()
        first = (
            _send_all(call, runtime, method, raw, outside_of(runtime), known, leads=True)
            for runtime in runtimes[:1]
        )
        await together(*first, _others(call, method, raw, runtimes, known))
        call.finish()


async def _others(
    call: ServerCall,
    method: Method,
    raw: bytes,
    runtimes: tuple[Runtime, ...],
    known: asyncio.Event,
) -> None:
    """Send what the other runtimes have, but nothing, nor an error, before `known` is set."""
    if len(runtimes) < 2:
        return
    try:
        if method.name == "StreamPodSandboxMetrics":
            changes = await label_changes(call, runtimes)
        else:
            changes = [outside_of(runtime) for runtime in runtimes]
        await together(
            *(
                _send_all(call, runtime, method, raw, change, known)
                for runtime, change in zip(runtimes[1:], changes[1:], strict=True)
            )
        )
    except RpcError:
        await known.wait()
        raise


async def _send_all(
    call: ServerCall,
    runtime: Runtime,
    method: Method,
    raw: bytes,
    change: Callable[[Any], bool],
    known: asyncio.Event,
    *,
    leads: bool = False,
) -> None:
    """Send what one runtime has.

    Args:
        call, runtime, method, raw: the call, and the runtime to ask.
        change: puts a message into its outside form; returns whether it differs.
        known: set once it is clear that the leading runtime knows the method.
        leads: whether this runtime leads.
    """
    async with aclosing(_messages(runtime, call, method, raw)) as messages:
        async for message in messages:
            if leads:
                known.set()
            await known.wait()
            answer = parse_response(method, message, runtime.where)
            call.send_message(bytes(answer.SerializeToString()) if change(answer) else message)
            await call.drained()
    if leads:
        known.set()


async def _messages(
    runtime: Runtime, call: ServerCall, method: Method, raw: bytes
) -> AsyncGenerator[bytes, None]:
    """Yield one runtime's messages, or its last known items instead."""
    unary = BY_NAME[UNARY[method.name]]
    question = Question(call, unary, _as(unary, raw), raw)
    if not runtime.reads(method):
        yield (await read(runtime, question)).raw
        return
    told = False
    try:
        async with aclosing(runtime.stream(method, raw, metadata=call.metadata)) as messages:
            while (message := await _next(messages, runtime, method)) is not None:
                told = True
                yield message
    except RpcError as error:
        unknown = error.code == Code.UNIMPLEMENTED and not runtime.primary
        if told or not (unknown or isinstance(error, NotAnswered)):
            raise named(runtime, error) from error
        yield (await read(runtime, question)).raw


async def _next(
    messages: AsyncGenerator[bytes, None], runtime: Runtime, method: Method
) -> bytes | None:
    """Return the next message, or None at the end.

    Raises:
        RpcError: UNAVAILABLE if it does not arrive in time.
    """
    seconds = runtime.read_timeout(None)
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages, None)
    except TimeoutError:
        runtime.note_late(method, seconds)
        raise runtime.gap_error(method) from None


def _as(method: Method, raw: bytes) -> Any:
    """The request in its unary form: the filters are the same."""
    return parse_request(method, raw)
