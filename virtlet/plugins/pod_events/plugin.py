"""What becomes of a pod's VM, as events on the pod: where a person looks first.

What the kubelet says itself is not said again: that a VM was started, or that an image was pulled.
"""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.cluster.pod_events import PodEvents, Told
from virtlet.model.event import Event, EventKind
from virtlet.model.node import Node
from virtlet.model.option import BOOLEAN, Option, Settings

POD_EVENTS: Option[bool] = Option(
    field="podEvents",
    flag="--pod-events",
    env="VIRTLET_POD_EVENTS",
    kind=BOOLEAN,
    default="true",
    help="post what becomes of a VM as events on its pod, where the manager has access to the "
    "cluster's API server (role virtlet-pod-events of deploy/cluster/rbac.yaml)",
    mappable=True,
)
GOOD_NEWS = frozenset({"ShareMounted", "StartedCold", "Resize", "LessMemory", "OthersWait"})
"""Topics of notices that are no warnings."""
ENDS = {"Completed": ("GuestPoweredOff", False), "OOMKilled": ("OOMKilled", True)}
"""How a VM ended, to the reason of the event and whether it is a warning."""
TOLD_BY_KUBELET = frozenset({"StartError"})
LONG_NAME = 300


class Plugin:
    """Posts events on pods."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._cluster = Cluster("")
        self._events: PodEvents | None = None

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare whether anything is posted."""
        return (POD_EVENTS,)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the way to the cluster, if that is wanted."""
        if settings[POD_EVENTS]:
            self._cluster = Cluster(settings[KUBECONFIG])
            self._events = PodEvents(self._cluster)

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        """Have what a person should know posted; never waits."""
        if self._events is not None and (told := told_of(event)) is not None:
            self._events.tell(told)

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Post no more."""
        if self._events is not None:
            self._events.stop()
            self._cluster.close()


def told_of(event: Event) -> Told | None:
    """What is posted of an event; None for nothing."""
    if event.pod is None:
        return None

    def told(reason: str, message: str, *, warning: bool = False, series: str = "") -> Told:
        assert event.pod is not None
        return Told(event.pod, reason, message, warning, series, event.at)

    match event.kind:
        case EventKind.VM_NOTICE:
            return told(event.topic, event.reason, warning=event.topic not in GOOD_NEWS)
        case EventKind.VM_STOPPED if event.reason not in TOLD_BY_KUBELET:
            reason, warning = ENDS.get(event.reason, ("VMEnded", True))
            return told(reason, event.message or event.reason, warning=warning)
        case EventKind.GUEST_READY:
            return told("GuestReady", f"the guest's agent has answered, {event.message}")
        case EventKind.IMAGE_PROGRESS:
            name = event.subject[:LONG_NAME]
            return told("PullingImage", f"image {name}: {event.message} are here", series=name)
    return None
