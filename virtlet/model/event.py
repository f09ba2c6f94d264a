"""What observers are told after a change is committed."""

import enum

from attrs import frozen

from virtlet.model.pod import PodMetadata
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
    GUEST_READY = "guest-ready"
    """The guest's agent has answered for the first time since the VM started."""
    IMAGE_PROGRESS = "image-progress"
    """A pull that takes long goes on; `message` says how far it is."""
    IMAGE_PULLED = "image-pulled"
    IMAGE_REMOVED = "image-removed"


@frozen(kw_only=True, field_transformer=typed)
class Event:
    """One committed change, or something to be known."""

    kind: EventKind
    subject: str
    """Id of the pod, VM or image."""
    pod_id: str = ""
    at: int = 0
    """Nanoseconds since the epoch."""
    reason: str = ""
    pod: PodMetadata | None = None
    """Whose pod it is, where one is known: of pods and VMs, and of pulls whose request names it."""
    topic: str = ""
    """What a notice is about, in CamelCase: `ShareNotMounted`."""
    message: str = ""
    """More for people: how a VM ended, how far a pull is."""
