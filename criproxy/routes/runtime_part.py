"""One runtime's part of a merged answer, also while it is away.

A runtime that answers is asked. For one that is away, its last known items are served for a grace
period, then the call fails: a kubelet that sees an error keeps its view of the node, one that sees
a short list starts to clean up. A runtime that never answered adds nothing, so that it can be
configured before it is installed, and can run as a pod of the same node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from attrs import frozen

from criproxy import image_names
from criproxy.http2.frames import Header
from criproxy.methods import BY_NAME, Method, check_response, parse_response
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.rpc.outgoing import Reply, awaited
from criproxy.runtimes.availability import NotAnswered
from criproxy.runtimes.last_known import INVENTORY
from criproxy.runtimes.list_edits import filtered
from criproxy.runtimes.runtime import Runtime
from virtlet.cri import api_pb2

#: Field 1, an empty message: what a kubelet sends that asks for all containers.
_EMPTY_FILTER = b"\x0a\x00"
#: Answers without pods: serve them at any age.
_TIMELESS = ("ImageFsInfo", "ListMetricDescriptors")
#: Calls that containerd knows since 2.2 only: without the primary's part, serve the other parts.
_OPTIONAL = ("ListMetricDescriptors", "ListPodSandboxMetrics")
#: Statistics that can be filtered, and the list of their subjects.
_STATISTICS: Mapping[str, str] = {
    "ListContainerStats": "ListContainers",
    "ListPodSandboxStats": "ListPodSandbox",
}


@frozen
class Question:
    """The question to every runtime.

    Args:
        call: the client's call.
        method: a unary read.
        request: its message.
        raw: the message as received, to be passed on.
    """

    call: ServerCall
    method: Method
    request: Any
    raw: bytes

    @property
    def complete(self) -> bool:
        """Whether everything is asked for: no filter, or an empty one."""
        return self.raw in (b"", _EMPTY_FILTER)


@frozen
class Part:
    """One runtime's part of the answer.

    Args:
        raw: the answer's message in its outside form.
        metadata, trailers: what came with it.
        told: whether the part is the runtime's answer, of now or before; else it is empty.
        unknown: the primary's error, if it does not know the method.
    """

    raw: bytes
    metadata: Sequence[Header] = ()
    trailers: Sequence[Header] = ()
    told: bool = True
    unknown: RpcError | None = None


NOTHING = Part(b"", told=False)


#: Called once with a runtime's part, or with the error of the whole answer.
Told = Callable[[Part | RpcError], None]


def start_read(runtime: Runtime, question: Question, told: Told) -> Callable[[], None]:
    """Ask a runtime for its part.

    Args:
        runtime: the runtime.
        question: the question.
        told: called once, maybe before this returns.

    Returns:
        A function that cancels the call.
    """
    if not runtime.reads(question.method):
        told(_caught(stand_in, runtime, question))
        return _nothing
    call = question.call
    remaining = call.remaining()
    timeout = runtime.read_timeout(remaining)
    own_limit = remaining is None or remaining > timeout

    def done(result: Reply | RpcError) -> None:
        if isinstance(result, RpcError):
            late = isinstance(result, NotAnswered) and result.code == Code.DEADLINE_EXCEEDED
            if late and own_limit:
                runtime.note_late(question.method, timeout)
            told(_caught(_instead, runtime, question, result, own_limit))
        else:
            told(_caught(_part, runtime, question, result))

    return runtime.start_call(
        question.method,
        question.raw,
        metadata=call.metadata,
        timeout=timeout,
        watched=own_limit,
        done=done,
    ).cancel


async def read(runtime: Runtime, question: Question) -> Part:
    """Return a runtime's part.

    Raises:
        RpcError: if the runtime answered with an error, or is away for longer than its grace.
    """
    return await awaited(lambda told: start_read(runtime, question, told))


def unknown_to_all(parts: Sequence[Part]) -> RpcError | None:
    """Return the primary's error if no runtime knows the method, else None."""
    return parts[0].unknown if parts and not any(part.told for part in parts) else None


def _nothing() -> None:
    """Cancel nothing."""


def _caught(work: Callable[..., Part], *args: Any) -> Part | RpcError:
    try:
        return work(*args)
    except RpcError as error:
        return error


def _part(runtime: Runtime, question: Question, reply: Reply) -> Part:
    """Return the part in a runtime's answer."""
    method, raw = question.method, reply.payload
    if method.name in INVENTORY and not renames(runtime, method):
        # `LastKnown` decodes it later.
        check_response(method, raw, runtime.where)
        outside = raw
    else:
        outside = _outside(runtime, parse_response(method, raw, runtime.where), raw)
    if question.complete:
        runtime.last.store_soon(method.name, raw, question.call.started)
    return Part(outside, reply.metadata, reply.trailers)


def _instead(runtime: Runtime, question: Question, error: RpcError, own_limit: bool) -> Part:
    """Return the part of a runtime that answered with an error, or not at all."""
    method = question.method
    if error.code == Code.UNIMPLEMENTED and not runtime.primary:
        # It never has anything to add, also while it is away.
        runtime.last.store(method.name, b"", question.call.started)
        return NOTHING
    if error.code == Code.UNIMPLEMENTED and method.name in _OPTIONAL:
        runtime.last.store(method.name, b"", question.call.started)
        return Part(b"", told=False, unknown=error)
    if not isinstance(error, NotAnswered):
        raise named(runtime, error)
    if error.code == Code.DEADLINE_EXCEEDED and not own_limit:
        raise error
    return stand_in(runtime, question)


def stand_in(runtime: Runtime, question: Question) -> Part:
    """Return the last known items of a runtime that is away, or does not answer this method.

    Raises:
        RpcError: UNAVAILABLE if nothing may be served in its place.
    """
    method = question.method
    if not runtime.last.seen:
        if runtime.primary:
            raise runtime.away_error()
        return NOTHING
    if not runtime.may_fill_in(method) and method.name not in _TIMELESS:
        raise runtime.gap_error(method)
    if not runtime.last.edits_known(method.name):
        raise runtime.gap_error(method)
    answer = runtime.last_answer(method)
    if answer is None:
        if method.name in _TIMELESS or runtime.last.is_empty:
            return NOTHING
        # It has pods, and their statistics are unknown: a kubelet would evict pods without
        # statistics first.
        raise runtime.gap_error(method)
    answer = _narrowed(runtime, question, answer)
    return Part(_outside(runtime, answer, answer.SerializeToString()))


def _narrowed(runtime: Runtime, question: Question, answer: Any) -> Any:
    """Return the items that match the request's filter.

    Raises:
        RpcError: UNAVAILABLE if nothing is known of a running pod or container that matches.
    """
    items = _STATISTICS.get(question.method.name)
    if items is None or question.complete:
        return filtered(question.request, answer)
    containers = runtime.last_answer(BY_NAME["ListContainers"])
    listed = containers.containers if containers is not None else ()
    narrowed = filtered(question.request, answer, listed)
    if not narrowed.stats and _running(runtime, BY_NAME[items], question.request.filter):
        raise runtime.gap_error(question.method)
    return narrowed


def _running(runtime: Runtime, items: Method, wanted: Any) -> bool:
    """Whether any running item, or one that may run, matches a filter of statistics."""
    listed = runtime.last_answer(items)
    if listed is None:
        return not runtime.last.is_empty
    request = items.request()
    request.filter.id = wanted.id
    request.filter.label_selector.update(wanted.label_selector)
    if items.name == "ListContainers":
        request.filter.pod_sandbox_id = wanted.pod_sandbox_id
        request.filter.state.state = api_pb2.CONTAINER_RUNNING
    else:
        request.filter.state.state = api_pb2.SANDBOX_READY
    return bool(filtered(request, listed).ByteSize())


def named(runtime: Runtime, error: RpcError) -> RpcError:
    """Return a runtime's error with the runtime's name, except for the primary's."""
    if runtime.primary:
        return error
    return RpcError(error.code, f"{runtime.where}: {error.message}", error.trailers)


def renames(runtime: Runtime, method: Method) -> bool:
    """Whether a runtime's answers to a method can have image names that differ outside."""
    return not runtime.primary and image_names.has_names(method.response.__name__)


def outside_of(runtime: Runtime) -> Callable[[Any], bool]:
    """Return a function that puts a runtime's image names into their outside form."""
    if runtime.primary:
        return lambda message: False
    change = image_names.outside(runtime.config.image_prefix)
    return lambda message: image_names.in_response(message, change)


def _outside(runtime: Runtime, answer: Any, raw: bytes) -> bytes:
    changed = outside_of(runtime)(answer)
    return bytes(answer.SerializeToString()) if changed else raw


_T = TypeVar("_T")


async def together(*works: Coroutine[Any, Any, _T]) -> list[_T]:
    """Return all results in order; on the first error cancel the other coroutines and raise it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
