"""Edits of a runtime's last known lists: what calls have changed since, and what a filter drops.

A runtime can die right after it has answered a change. Its last list is outdated then, but correct
with the changes that its client knows of: those that were answered with OK. A runtime that is away
cannot apply a request's filter to its lists either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from virtlet.cri import api_pb2

PODS, CONTAINERS, IMAGES = "ListPodSandbox", "ListContainers", "ListImages"

#: Number of changes to one list that are remembered; of older ones only the fact is known.
_LIMIT = 512

#: Changes the answer of a list in place.
Edit = Callable[[Any], None]


@frozen
class _DatedEdit:
    #: None if the change is unknown.
    edit: Edit | None
    at: float


class ListEdits:
    """The changes to each list since it was asked for."""

    def __init__(self) -> None:
        self._since: dict[str, list[_DatedEdit]] = {}

    def add(self, changes: Mapping[str, Edit | None]) -> None:
        """Note that a call has changed these lists now; None is an unknown change."""
        now = time.monotonic()
        for name, edit in changes.items():
            since = self._since.setdefault(name, [])
            unknown_again = edit is None and since and since[-1].edit is None
            if unknown_again or len(since) == _LIMIT:
                # A list with this change has the earlier ones too.
                since[-1] = _DatedEdit(None, now)
            else:
                since.append(_DatedEdit(edit, now))

    def listed(self, name: str, asked: float) -> None:
        """Drop the changes before a list was asked for: the list has them."""
        if name in self._since:
            self._since[name] = [a for a in self._since[name] if a.at >= asked]

    def since(self, name: str) -> tuple[Edit, ...]:
        """Return the known changes."""
        return tuple(a.edit for a in self._since.get(name, ()) if a.edit is not None)

    def known(self, name: str) -> bool:
        """Whether all changes are known."""
        return all(a.edit is not None for a in self._since.get(name, ()))


def sandbox_made(sandbox_id: str, request: Any) -> Mapping[str, Edit]:
    """Return the edits for a RunPodSandbox with this request, answered with this id."""
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
    """Return the edits for a CreateContainer with this request, answered with this id."""
    config = request.config
    made = api_pb2.Container(
        id=container_id,
        pod_sandbox_id=request.pod_sandbox_id,
        metadata=config.metadata,
        image=config.image,
        # A kubelet sends the id from the image's status.
        image_ref=config.image.image,
        state=api_pb2.CONTAINER_CREATED,
        created_at=time.time_ns(),
        labels=config.labels,
        annotations=config.annotations,
    )
    return {CONTAINERS: lambda answer: _add(answer.containers, made)}


def done(method: str, some_id: str) -> Mapping[str, Edit | None]:
    """Return the edits for a call about one sandbox or container, or about images.

    Args:
        method: its name; there are no edits if it changes no list.
        some_id: the id of the sandbox or container.
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
#: Lists that a method changes in a way that its messages do not show.
_UNKNOWN: Mapping[str, tuple[str, ...]] = {
    "RestorePod": (PODS, CONTAINERS),
    "PullImage": (IMAGES,),
    "RemoveImage": (IMAGES,),
}


def _add(items: Any, made: Any) -> None:
    if all(item.id != made.id for item in items):
        items.append(made)


def _reach(items: Any, field: str, some_id: str, state: int) -> None:
    # States only advance, and the list may be newer.
    for item in items:
        if getattr(item, field) == some_id:
            item.state = max(item.state, state)


def _remove(items: Any, field: str, some_id: str) -> None:
    kept = [item for item in items if getattr(item, field) != some_id]
    del items[:]
    items.extend(kept)


def filtered(request: Any, answer: Any, containers: Iterable[Any] = ()) -> Any:
    """Return the answer with the items that match the request's filter.

    Args:
        request: a list request; without a filter all items match.
        answer: the list's answer; not changed.
        containers: as listed; statistics of containers do not name their sandbox.
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
    # Runtimes accept the beginning of an id too.
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
