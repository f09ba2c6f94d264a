"""Lists, statistics and metrics: the items of all runtimes in one answer, the primary's first.

A descriptor names a metric's labels, and a metric gives their values in that order. A client that
gets several descriptors of one metric keeps the first, so the values of other runtimes are put into
its order: a label that a runtime lacks is empty, a label that the descriptor lacks is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import frozen

from criproxy import image_names
from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.routes.one_image import ImageRouter
from criproxy.routes.one_runtime import forward
from criproxy.routes.runtime_part import Part, Question, read, start_read, together, unknown_to_all
from criproxy.rpc.incoming import CallFollower, ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.owners import CONTAINER, SANDBOX, Owner, Owners
from criproxy.runtimes.runtime import Runtime

#: Takes the method and the parts' encoded messages, and returns the encoded answer.
Join = Callable[[Method, Sequence[bytes]], bytes]

_WHERE = "criproxy"


def concatenated(method: Method, parts: Sequence[bytes]) -> bytes:
    """Join all items.

    In protobuf, concatenating the encodings of two messages joins their repeated fields, also
    fields that the stubs do not know.
    """
    return b"".join(parts)


def united(field: str, key: str) -> Join:
    """Join the items of a field; of items with one value of `key` keep the first."""

    def join(method: Method, parts: Sequence[bytes]) -> bytes:
        if len(parts) < 2:
            return concatenated(method, parts)
        merged = parse_response(method, parts[0], _WHERE)
        items = getattr(merged, field)
        told = {getattr(item, key) for item in items}
        for part in parts[1:]:
            for item in getattr(parse_response(method, part, _WHERE), field):
                if getattr(item, key) not in told:
                    told.add(getattr(item, key))
                    items.append(item)
        return bytes(merged.SerializeToString())

    return join


def filesystems(method: Method, parts: Sequence[bytes]) -> bytes:
    """Join all filesystems, the primary's first in both lists.

    A runtime that lists no container filesystems keeps containers where its images are. A kubelet
    takes the first filesystem of the list for the node's, so it must be the primary's.
    """
    merged = parse_response(method, concatenated(method, parts), _WHERE)
    if len(parts) < 2 or not merged.container_filesystems:
        return concatenated(method, parts)
    primary = parse_response(method, parts[0], _WHERE)
    if primary.container_filesystems:
        return concatenated(method, parts)
    others = list(merged.container_filesystems)
    del merged.container_filesystems[:]
    merged.container_filesystems.extend([*primary.image_filesystems, *others])
    return bytes(merged.SerializeToString())


@frozen
class Filtered:
    """Routes lists by their filter.

    Args:
        owners: knows the runtimes and their ids.
        images: finds the runtime of an image.
    """

    owners: Owners
    images: ImageRouter

    def cut_short(self, request: Any) -> bool:
        """Whether the filter has an id of no known item, which may be the beginning of one."""
        if len(self.owners.runtimes) == 1:
            return False
        return any(self.owners.known(some_id) is None for _, some_id, _ in _ids(request))

    async def complete(self, request: Any) -> bool:
        """Replace beginnings of ids by whole ids; return whether any changed.

        Raises:
            RpcError: FAILED_PRECONDITION for the beginning of several ids.
        """
        changed = False
        for field, some_id, kind in _ids(request):
            owner = await self.owners.meant(some_id, kind)
            if owner is not None:
                changed = _put(request.filter, field, owner) or changed
        return changed

    def narrow(self, request: Any) -> tuple[tuple[Runtime, ...], bool]:
        """Return the runtimes that can have what the filter asks for.

        Returns:
            The runtimes, and whether the filter was put into the form of the only one.
        """
        everyone = self.owners.runtimes
        if not any(field.name == "filter" for field, _ in request.ListFields()):
            return everyone, False
        wanted = request.filter
        if hasattr(wanted, "image"):
            return self._by_image(request)
        changed = False
        for field, some_id, _ in _ids(request):
            owner = self.owners.known(some_id)
            if owner is not None:
                changed = _put(wanted, field, owner) or changed
                everyone = tuple(r for r in everyone if r is owner.runtime)
        return everyone, changed

    def _by_image(self, request: Any) -> tuple[tuple[Runtime, ...], bool]:
        name = request.filter.image.image
        if not name or image_names.begins_image_id(name):
            return self.owners.runtimes, False
        runtime = self.images.by_prefix(name) or self.images.by_digest(name)
        if runtime is None:
            return (self.owners.primary,), False
        change = image_names.inside(runtime.config.image_prefix)
        return (runtime,), image_names.in_request(request, change)


def _ids(request: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the ids in a request's filter: field, id, and SANDBOX or CONTAINER."""
    if not any(field.name == "filter" for field, _ in request.ListFields()):
        return
    wanted = request.filter
    of_sandbox = type(wanted).__name__.startswith("PodSandbox")
    for field, kind in (("id", SANDBOX if of_sandbox else CONTAINER), (SANDBOX, SANDBOX)):
        some_id = getattr(wanted, field, "")
        if some_id:
            yield field, some_id, kind


def _put(wanted: Any, field: str, owner: Owner) -> bool:
    if getattr(wanted, field) == owner.id:
        return False
    setattr(wanted, field, owner.id)
    return True


@frozen
class MergedList:
    """Routes the calls.

    Args:
        filtered: narrows a filtered list to the runtimes that can have the items.
        join: merges the parts.
    """

    filtered: Filtered
    join: Join = concatenated

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Answer a list."""
        raw = call.payload()
        request = parse_request(method, raw)
        if self.filtered.cut_short(request):
            call.run(self._completed(call, method, request, raw))
        else:
            self._gather(call, method, request, raw)

    async def _completed(self, call: ServerCall, method: Method, request: Any, raw: bytes) -> None:
        if await self.filtered.complete(request):
            raw = request.SerializeToString()
        self._gather(call, method, request, raw)

    def _gather(self, call: ServerCall, method: Method, request: Any, raw: bytes) -> None:
        runtimes, changed = self.filtered.narrow(request)
        if changed:
            raw = request.SerializeToString()
        _Gathering(Question(call, method, request, raw), runtimes, self.join)


class _Gathering(CallFollower):
    """Gathers the parts of one answer; follows the client's side of the call."""

    def __init__(self, question: Question, runtimes: tuple[Runtime, ...], join: Join) -> None:
        self._question = question
        self._join = join
        self._parts: list[Part | None] = [None] * len(runtimes)
        self._missing = len(runtimes)
        self._cancels: list[Callable[[], None]] = []
        question.call.follow(self)
        for position, runtime in enumerate(runtimes):
            self._cancels.append(start_read(runtime, question, partial(self._told, position)))
        if not runtimes:
            self._answer()

    def client_gone(self) -> None:
        """Cancel the calls: the answer is no longer wanted."""
        for cancel in self._cancels:
            cancel()

    def _told(self, position: int, part: Part | RpcError) -> None:
        call = self._question.call
        if call.finished:
            return
        if isinstance(part, RpcError):
            call.fail(part)
            self.client_gone()
            return
        self._parts[position] = part
        self._missing -= 1
        if not self._missing:
            self._answer()

    def _answer(self) -> None:
        call = self._question.call
        parts = [part for part in self._parts if part is not None]
        unknown = unknown_to_all(parts)
        if unknown is not None:
            call.fail(unknown)
            return
        if parts:
            call.send_metadata(parts[0].metadata)
        question = self._question
        call.send_message(self._join(question.method, [part.raw for part in parts]))
        call.finish(extra=parts[0].trailers if parts else ())


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
