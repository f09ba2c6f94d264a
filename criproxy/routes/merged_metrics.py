"""Metrics of all runtimes, with their labels as the client was told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.rewrite.metric_labels import Keys, aligned, keys_of
from criproxy.routes.forward import forward
from criproxy.routes.joins import concatenated
from criproxy.routes.runtime_part import Part, Question, read, unknown_to_all
from criproxy.routes.together import together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

_DESCRIPTORS = BY_NAME["ListMetricDescriptors"]


@frozen
class MergedMetrics:
    """The rule.

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
        raw = call.payload()
        call.run(self._answer(Question(call, method, parse_request(method, raw), raw)))

    async def _answer(self, question: Question) -> None:
        call, runtimes = question.call, self.owners.runtimes
        parts = await together(*(read(runtime, question) for runtime in runtimes))
        unknown = unknown_to_all(parts)
        if unknown is not None:
            raise unknown
        changes = await label_changes(call, runtimes)
        call.send_metadata(parts[0].metadata)
        messages = [
            _changed(question.method, runtime, part, change)
            for runtime, part, change in zip(runtimes, parts, changes, strict=True)
        ]
        call.send_message(concatenated(question.method, messages))
        call.finish(extra=parts[0].trailers)


async def label_changes(
    call: ServerCall, runtimes: Sequence[Runtime]
) -> list[Callable[[Any], bool]]:
    """For each runtime, what puts its metrics' labels in place; see `metric_labels.aligned`."""
    own = await together(*(_keys(call, runtime) for runtime in runtimes))
    told: dict[str, Sequence[str]] = {}
    for keys in own:
        told = {**keys, **told}
    return [aligned(keys, told) for keys in own]


async def _keys(call: ServerCall, runtime: Runtime) -> Keys:
    question = Question(call, _DESCRIPTORS, _DESCRIPTORS.request(), b"")
    try:
        part = await read(runtime, question)
    except RpcError as error:
        if error.code == Code.UNIMPLEMENTED:
            return {}
        raise
    return keys_of(parse_response(_DESCRIPTORS, part.raw, runtime.where).descriptors)


def _changed(method: Method, runtime: Runtime, part: Part, change: Callable[[Any], bool]) -> bytes:
    if runtime.primary:
        return part.raw
    answer = parse_response(method, part.raw, runtime.where)
    return bytes(answer.SerializeToString()) if change(answer) else part.raw
