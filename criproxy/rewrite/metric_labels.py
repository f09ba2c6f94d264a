"""Labels of metrics that several runtimes describe differently.

A descriptor names a metric's labels, and a metric gives their values in that order. A client that
is told of one metric by several runtimes keeps the first descriptor, so the others' values are put
into its order: what a runtime does not tell is empty, what the descriptor does not name is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Keys = Mapping[str, Sequence[str]]
"""Metric to the keys of its labels."""


def keys_of(descriptors: Iterable[Any]) -> Keys:
    """What descriptors say of labels."""
    return {d.name: tuple(d.label_keys) for d in descriptors}


def aligned(own: Keys, told: Keys) -> Callable[[Any], bool]:
    """Puts the label values of a runtime's metrics into the order that the client was told.

    Args:
        own: as the runtime describes its metrics.
        told: as they were described to the client.

    Returns:
        Changes an answer to a metrics call in place, and says whether it did.
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
