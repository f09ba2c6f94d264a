"""What observers are told after a change is committed."""

import enum

from attrs import frozen

from virtlet.model.typed import typed


class EventKind(enum.Enum):
    """What changed."""

    POD_CREATED = "pod-created"
    POD_STOPPED = "pod-stopped"
    POD_REMOVED = "pod-removed"
    VM_CREATED = "vm-created"
    VM_STARTED = "vm-started"
    VM_STOPPED = "vm-stopped"
    VM_REMOVED = "vm-removed"
    VM_NOTICE = "vm-notice"
    """Something about a VM that its pod's owner should know; `reason` says it."""
    IMAGE_PULLED = "image-pulled"
    IMAGE_REMOVED = "image-removed"


@frozen(kw_only=True, field_transformer=typed)
class Event:
    """One committed change."""

    kind: EventKind
    subject: str
    """Id of the pod, VM or image."""
    pod_id: str = ""
    at: int = 0
    """Nanoseconds since the epoch."""
    reason: str = ""
