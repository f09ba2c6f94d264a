"""What is asked of the node: Version, RuntimeConfig, UpdateRuntimeConfig and Status.

A Status has the conditions of all runtimes, their handlers and features united. The primary's
conditions come first: a kubelet takes the first of each type for the node's, and the node is as
ready as its primary runtime. Those of the other runtimes say how they are, with the runtime's name
in the reason. When only one of these fails its Status, the node stays ready.

A kubelet that is told any handler looks for every pod's handler among them, and a pod without a
RuntimeClass has the nameless one. So a primary that lists none (containerd before 2.0) gets it, and
those that the configuration gives it, without features: a kubelet must not count on features that
no runtime told.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from attrs import frozen

from criproxy.methods import Method, parse_request, parse_response
from criproxy.routes.one_runtime import forward
from criproxy.routes.runtime_part import NOTHING, Part, named, together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.availability import NotAnswered
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

#: Errors of UpdateRuntimeConfig that are ignored except from the primary: repeat it on connect.
_NO_MATTER = (Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.CANCELLED)


@frozen
class ToPrimary:
    """Routes Version and RuntimeConfig."""

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        forward(call, self.owners.primary, method)


@frozen
class ToEveryone:
    """Sends UpdateRuntimeConfig to all runtimes.

    The primary must be there. Another runtime that is away or silent gets the request when it
    connects: the node's pod network must not wait for it.
    """

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        raw = call.payload()
        parse_request(method, raw)
        call.run(self._tell(call, method, raw))

    async def _tell(self, call: ServerCall, method: Method, raw: bytes) -> None:
        if not self.owners.primary.answering:
            raise self.owners.primary.away_error()
        tellings: list[Coroutine[Any, Any, Part]] = []
        for runtime in self.owners.runtimes:
            runtime.set_pending_update(raw)
            if runtime.answering:
                tellings.append(_tell(call, runtime, method, raw))
        parts = await together(*tellings)
        call.send_metadata(parts[0].metadata)
        call.send_message(parts[0].raw)
        call.finish(extra=parts[0].trailers)


async def _tell(call: ServerCall, runtime: Runtime, method: Method, raw: bytes) -> Part:
    remaining = call.remaining()
    try:
        if runtime.primary:
            reply = await runtime.call(method, raw, metadata=call.metadata, timeout=remaining)
        else:
            reply = await runtime.ask(method, raw, metadata=call.metadata, remaining=remaining)
    except RpcError as error:
        runtime.update_sent(raw, error)
        runtime.check_now.set()
        if not runtime.primary and error.code in _NO_MATTER:
            return NOTHING
        raise named(runtime, error) from error
    runtime.update_sent(raw)
    return Part(reply.payload, reply.metadata, reply.trailers)


#: Conditions that are false for a runtime without a Status; the CRI requires both.
_REQUIRED = ("RuntimeReady", "NetworkReady")


@frozen
class MergedStatus:
    """Routes the calls.

    Args:
        owners: knows the runtimes.
    """

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Answer a call."""
        primary = self.owners.primary
        if len(self.owners.runtimes) == 1 and primary.answering:
            forward(call, primary, method)
            return
        request = parse_request(method, call.payload())
        call.run(self._answer(call, method, request))

    async def _answer(self, call: ServerCall, method: Method, request: Any) -> None:
        runtimes = self.owners.runtimes
        parts = await together(*(_read(r, call, method, request) for r in runtimes))
        merged = method.response()
        listing = False
        for runtime, part in zip(runtimes, parts, strict=True):
            answer = parse_response(method, part.raw, runtime.where)
            listing = listing or (runtime.primary and bool(answer.runtime_handlers))
            _add(merged, runtime, answer)
        if not listing:
            _add_unlisted(merged, self.owners.primary)
        if request.verbose:
            merged.info["criproxy"] = json.dumps([_info(r) for r in runtimes])
        call.send_metadata(parts[0].metadata)
        call.send_message(merged.SerializeToString())
        call.finish(extra=parts[0].trailers)


async def _read(runtime: Runtime, call: ServerCall, method: Method, request: Any) -> Part:
    if not runtime.answering:
        return _not_ready(runtime, method, "Away", runtime.away_error())
    try:
        reply = await runtime.ask(
            method, call.payload(), metadata=call.metadata, remaining=call.remaining()
        )
    except RpcError as error:
        if isinstance(error, NotAnswered):
            return _not_ready(runtime, method, "Late" if runtime.answering else "Away", error)
        if runtime.primary:
            raise
        return _not_ready(runtime, method, "Error", error)
    parse_response(method, reply.payload, runtime.where)
    if not request.verbose:
        # Verbose information is large and soon outdated.
        runtime.last.store(method.name, reply.payload, call.started)
    return Part(reply.payload, reply.metadata, reply.trailers)


def _not_ready(runtime: Runtime, method: Method, reason: str, error: RpcError) -> Part:
    """Return the Status of a runtime that does not answer."""
    answer = method.response()
    for kind in _REQUIRED:
        answer.status.conditions.add(type=kind, status=False, reason=reason, message=error.message)
    last = runtime.last_answer(method)
    if last is not None:
        answer.runtime_handlers.extend(last.runtime_handlers)
    return Part(answer.SerializeToString())


def _add(merged: Any, runtime: Runtime, answer: Any) -> None:
    for condition in answer.status.conditions:
        said = condition.reason
        condition.reason = f"{runtime.name}: {said}" if said else runtime.name
    handlers = list(answer.runtime_handlers)
    info = dict(answer.info)
    del answer.runtime_handlers[:]
    answer.info.clear()
    # Conditions are appended, features that are true stay true, unknown fields come along.
    merged.MergeFrom(answer)
    known = {handler.name for handler in merged.runtime_handlers}
    for handler in handlers:
        # The nameless handler is always the primary's.
        if handler.name not in known and (handler.name or runtime.primary):
            merged.runtime_handlers.append(handler)
    for key, value in info.items():
        merged.info[key if runtime.primary else f"{runtime.name}/{key}"] = value


def _add_unlisted(merged: Any, primary: Runtime) -> None:
    """Put the handlers of a primary that lists none before those of the other runtimes."""
    others = list(merged.runtime_handlers)
    if not others:
        return
    taken = {handler.name for handler in others}
    del merged.runtime_handlers[:]
    for name in ("", *primary.config.handlers):
        if name not in taken:
            merged.runtime_handlers.add(name=name, features={})
    merged.runtime_handlers.extend(others)


def _info(runtime: Runtime) -> dict[str, object]:
    return {
        "name": runtime.name,
        "socket": runtime.config.socket,
        "primary": runtime.primary,
        "answering": runtime.answering,
        "reason": runtime.reason,
        "sandboxes": len(runtime.last.sandboxes),
        "containers": len(runtime.last.containers),
    }
