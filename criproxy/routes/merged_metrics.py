"""Metrics of all runtimes, with labels in the order of the descriptors that the client has.

A descriptor names a metric's labels, and a metric gives their values in that order. A client that
gets several descriptors of one metric keeps the first, so the values of other runtimes are put into
its order: a label that a runtime lacks is empty, a label that the descriptor lacks is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.routes.forward import forward
from criproxy.routes.merged_list import concatenated
from criproxy.routes.runtime_part import Part, Question, read, together, unknown_to_all
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

Keys = Mapping[str, Sequence[str]]
"""Metric to the keys of its labels."""


def keys_of(descriptors: Iterable[Any]) -> Keys:
    """Return the label keys in descriptors."""
    return {d.name: tuple(d.label_keys) for d in descriptors}


def aligned(own: Keys, told: Keys) -> Callable[[Any], bool]:
    """Return a function that puts the label values of a runtime's metrics into the client's order.

    Args:
        own: the runtime's descriptors.
        told: the descriptors that the client has.

    Returns:
        A function that changes an answer in place and returns whether it did.
    """
    different = {name: keys for name, keys in own.items() if told.get(name, keys) != keys}

    def change(answer: Any) -> bool:
        changed = False
        for metric in _metrics(answer) if different else ():
            keys = different.get(metric.name)
            if keys is not None and len(keys) == len(metric.label_values):
                values = dict(zip(keys, metric.label_values, strict=True))
                metric.label_values[:] = [values.get(key, "") for key in told[metric.name]]
                changed = True
        return changed

    return change


def _metrics(answer: Any) -> Iterable[Any]:
    field = "pod_metrics" if hasattr(answer, "pod_metrics") else "pod_sandbox_metrics"
    for pod in getattr(answer, field):
        yield from pod.metrics
        for container in pod.container_metrics:
            yield from container.metrics


_DESCRIPTORS = BY_NAME["ListMetricDescriptors"]


@frozen
class MergedMetrics:
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
    """Return for each runtime what reorders its metrics' labels; see `aligned`."""
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
