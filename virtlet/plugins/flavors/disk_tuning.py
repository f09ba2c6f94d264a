"""How fast a VM's disks are: what fits together, and what a pod may have of its handler's."""

from typing import Any

from attrs import evolve

from virtlet.errors import InvalidArgument
from virtlet.model.flavor import Flavor
from virtlet.model.option import Annotation
from virtlet.model.pod import Pod
from virtlet.plugins.flavors import annotations

_LIMITS = (
    ("disk_iops", annotations.DISK_IOPS, annotations.DISK_IOPS_BURST),
    ("disk_bandwidth", annotations.DISK_BANDWIDTH, annotations.DISK_BANDWIDTH_BURST),
)
"""Field of the flavor, whose burst has the same name with `_burst`, and its annotations."""


def flaw(flavor: Flavor) -> str:
    """What of a handler's settings does not fit together; "" where all does."""
    if flavor.disk_io == "native" and flavor.disk_cache not in ("none", "directsync"):
        return "disk_io: native takes disk_cache: none or directsync"
    for field, _, _ in _LIMITS:
        limit, burst = getattr(flavor, field), getattr(flavor, f"{field}_burst")
        if burst and not limit:
            return f"{field}_burst needs {field}"
        if burst and burst < limit:
            return f"{field}_burst is less than {field}"
    return _of_bus(flavor)


def limited(pod: Pod, flavor: Flavor, allowed: Flavor) -> Flavor:
    """A flavor with the I/O limits that a pod asks for.

    Args:
        pod: whose annotations.
        flavor: the pod's.
        allowed: the handler's, whose limits are the most that the pod may have.

    Raises:
        InvalidArgument: it asks for more, or for what does not fit together.
    """
    for field, limit_annotation, burst_annotation in _LIMITS:
        most, most_burst = getattr(allowed, field), getattr(allowed, f"{field}_burst")
        limit, burst = limit_annotation.of(pod), burst_annotation.of(pod)
        _check(limit_annotation, limit, most)
        _check(burst_annotation, burst, most_burst or most)
        limit = limit or most
        burst = burst or most_burst
        if burst and not limit:
            raise InvalidArgument(
                f"annotation {burst_annotation.name}: a burst needs a limit: set "
                f"{limit_annotation.name} too"
            )
        if burst and burst < limit:
            raise InvalidArgument(
                f"annotation {burst_annotation.name}: {burst} is less than the limit {limit} "
                "itself: raise it, or leave it out"
            )
        changes: dict[str, Any] = {field: limit, f"{field}_burst": burst}
        flavor = evolve(flavor, **changes)
    problem = _of_bus(flavor)
    if problem:
        raise InvalidArgument(f"pod {pod.name}: {problem}")
    return flavor


def _check(annotation: Annotation[int | None], asked: int | None, most: int) -> None:
    if asked and most and asked > most:
        raise InvalidArgument(
            f"annotation {annotation.name}: {asked} is more than the {most} of the handler's flavor"
        )


def _of_bus(flavor: Flavor) -> str:
    if flavor.disk_bus == "nvme" and (flavor.disk_iops or flavor.disk_bandwidth):
        return (
            "disks with I/O limits are on scsi or virtio, not nvme: choose another "
            f"{annotations.DISK_DRIVER.name}, or disk_bus of the handler's flavor"
        )
    return ""
