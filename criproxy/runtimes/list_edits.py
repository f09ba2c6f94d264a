"""Edits of a runtime's last known lists: what calls have changed since, and what a filter drops.

A runtime can die right after it has answered a change. Its last list is not the truth any more
then, but with what its client was told since it is. Only changes that were answered with OK count:
of others the client knows no more than the list says. A runtime that is away cannot apply a
request's filter to its lists either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from virtlet.cri import api_pb2

PODS, CONTAINERS, IMAGES = "ListPodSandbox", "ListContainers", "ListImages"

#: Changes to one list that are remembered; of more it is not known what they were.
_LIMIT = 512

#: Changes a list's answer in place.
Edit = Callable[[Any], None]


@frozen
class _DatedEdit:
    #: None when it is not known what changed.
    edit: Edit | None
    at: float


class ListEdits:
    """What was changed since each list was asked for."""

    def __init__(self) -> None:
        self._since: dict[str, list[_DatedEdit]] = {}

    def add(self, changes: Mapping[str, Edit | None]) -> None:
        """A call has changed these lists just now; None when nobody knows how."""
        now = time.monotonic()
        for name, edit in changes.items():
            since = self._since.setdefault(name, [])
            unknown_again = edit is None and since and since[-1].edit is None
            if unknown_again or len(since) == _LIMIT:
                # A list that has this change has those before it too.
                since[-1] = _DatedEdit(None, now)
            else:
                since.append(_DatedEdit(edit, now))

    def listed(self, name: str, asked: float) -> None:
        """A list came that was asked for then: what was changed before is in it."""
        if name in self._since:
            self._since[name] = [a for a in self._since[name] if a.at >= asked]

    def since(self, name: str) -> tuple[Edit, ...]:
        """What was changed, as far as it is known."""
        return tuple(a.edit for a in self._since.get(name, ()) if a.edit is not None)

    def known(self, name: str) -> bool:
        """Whether it is known of every change what it was."""
        return all(a.edit is not None for a in self._since.get(name, ()))


def sandbox_made(sandbox_id: str, request: Any) -> Mapping[str, Edit]:
    """RunPodSandbox with this request has answered with this id."""
    config = request.config
    made = api_pb2.PodSandbox(
        id=sandbox_id,
        metadata=config.metadata,
        state=api_pb2.SANDBOX_READY,
        created_at=time.time_ns(),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=request.runtime_handler,
    )
    return {PODS: lambda answer: _add(answer.items, made)}


def container_made(container_id: str, request: Any) -> Mapping[str, Edit]:
    """CreateContainer with this request has answered with this id."""
    config = request.config
    made = api_pb2.Container(
        id=container_id,
        pod_sandbox_id=request.pod_sandbox_id,
        metadata=config.metadata,
        image=config.image,
        # What a kubelet asks for is what the image's status told as its id.
        image_ref=config.image.image,
        state=api_pb2.CONTAINER_CREATED,
        created_at=time.time_ns(),
        labels=config.labels,
        annotations=config.annotations,
    )
    return {CONTAINERS: lambda answer: _add(answer.containers, made)}


def done(method: str, some_id: str) -> Mapping[str, Edit | None]:
    """What a call has changed that is about one sandbox or container, or about images.

    Args:
        method: its name; one that changes no list changes nothing.
        some_id: the sandbox's or container's.
    """
    if method == "StopPodSandbox":
        return {
            PODS: lambda a: _reach(a.items, "id", some_id, api_pb2.SANDBOX_NOTREADY),
            CONTAINERS: lambda a: _reach(
                a.containers, "pod_sandbox_id", some_id, api_pb2.CONTAINER_EXITED
            ),
        }
    if method == "RemovePodSandbox":
        return {
            PODS: lambda a: _remove(a.items, "id", some_id),
            CONTAINERS: lambda a: _remove(a.containers, "pod_sandbox_id", some_id),
        }
    if method in _STAGES:
        return {CONTAINERS: lambda a: _reach(a.containers, "id", some_id, _STAGES[method])}
    if method == "RemoveContainer":
        return {CONTAINERS: lambda a: _remove(a.containers, "id", some_id)}
    return dict.fromkeys(_UNKNOWN.get(method, ()))


_STAGES: Mapping[str, int] = {
    "StartContainer": api_pb2.CONTAINER_RUNNING,
    "StopContainer": api_pb2.CONTAINER_EXITED,
}
#: Lists that these change, but their messages do not say into what.
_UNKNOWN: Mapping[str, tuple[str, ...]] = {
    "RestorePod": (PODS, CONTAINERS),
    "PullImage": (IMAGES,),
    "RemoveImage": (IMAGES,),
}


def _add(items: Any, made: Any) -> None:
    if all(item.id != made.id for item in items):
        items.append(made)


def _reach(items: Any, field: str, some_id: str, state: int) -> None:
    # States only go on: a list that was made meanwhile may be ahead.
    for item in items:
        if getattr(item, field) == some_id:
            item.state = max(item.state, state)


def _remove(items: Any, field: str, some_id: str) -> None:
    kept = [item for item in items if getattr(item, field) != some_id]
    del items[:]
    items.extend(kept)


def filtered(request: Any, answer: Any, containers: Iterable[Any] = ()) -> Any:
    """The answer with only those items that the request's filter lets through.

    Args:
        request: a list request; one without a filter lets everything through.
        answer: the matching list answer; not changed.
        containers: as listed; statistics of containers do not say their sandbox.
    """
    rule = _RULES.get(type(answer).__name__)
    if rule is None or not any(f.name == "filter" for f, _ in request.ListFields()):
        return answer
    field, matches = rule
    if getattr(request.filter, "pod_sandbox_id", "") and field == "stats":
        inside = {c.id for c in containers if _id(request.filter.pod_sandbox_id, c.pod_sandbox_id)}
    else:
        inside = None
    kept = type(answer)()
    items = getattr(kept, field)
    for item in getattr(answer, field):
        if matches(request.filter, item) and (inside is None or item.attributes.id in inside):
            items.append(item)
    return kept


def _labels(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _id(wanted: str, actual: str) -> bool:
    # Runtimes take the beginning of an id as well.
    return actual.startswith(wanted)


def _sandbox(wanted: Any, item: Any) -> bool:
    return (
        _id(wanted.id, item.id)
        and (not wanted.HasField("state") or wanted.state.state == item.state)
        and _labels(wanted.label_selector, item.labels)
    )


def _container(wanted: Any, item: Any) -> bool:
    return (
        _id(wanted.id, item.id)
        and _id(wanted.pod_sandbox_id, item.pod_sandbox_id)
        and (not wanted.HasField("state") or wanted.state.state == item.state)
        and _labels(wanted.label_selector, item.labels)
    )


def _stats(wanted: Any, item: Any) -> bool:
    return _id(wanted.id, item.attributes.id) and _labels(
        wanted.label_selector, item.attributes.labels
    )


def _image(wanted: Any, item: Any) -> bool:
    name = wanted.image.image
    return not name or name == item.id or name in item.repo_tags or name in item.repo_digests


_RULES: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ListPodSandboxResponse": ("items", _sandbox),
    "ListContainersResponse": ("containers", _container),
    "ListContainerStatsResponse": ("stats", _stats),
    "ListPodSandboxStatsResponse": ("stats", _stats),
    "ListImagesResponse": ("images", _image),
}
