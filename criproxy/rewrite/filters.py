"""The CRI's list filters, for the last known items of a runtime that cannot apply them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def apply(request: Any, answer: Any, containers: Iterable[Any] = ()) -> Any:
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
    filtered = type(answer)()
    items = getattr(filtered, field)
    for item in getattr(answer, field):
        if matches(request.filter, item) and (inside is None or item.attributes.id in inside):
            items.append(item)
    return filtered


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
