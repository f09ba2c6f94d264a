"""GetContainerEvents: every change once, in order, to every subscriber."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from virtlet.core.cri import replies
from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import PodRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import ResourceExhausted, Unavailable
from virtlet.model.event import Event, EventKind

log = logging.getLogger(__name__)

BACKLOG = 1000
"""Events that wait for one subscriber before it is cut off."""

_KINDS = {
    EventKind.POD_CREATED: (cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT),
    EventKind.POD_STOPPED: (cri.CONTAINER_STOPPED_EVENT,),
    EventKind.POD_REMOVED: (cri.CONTAINER_DELETED_EVENT,),
    EventKind.VM_CREATED: (cri.CONTAINER_CREATED_EVENT,),
    EventKind.VM_STARTED: (cri.CONTAINER_STARTED_EVENT,),
    EventKind.VM_STOPPED: (cri.CONTAINER_STOPPED_EVENT,),
    EventKind.VM_REMOVED: (cri.CONTAINER_DELETED_EVENT,),
}
"""A pod that comes up is created and started at once, as other runtimes tell it."""


class _Subscriber:
    """One client's backlog."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[cri.ContainerEventResponse | None] = asyncio.Queue(BACKLOG)
        """None is the end."""
        self.cut_off = False


class ContainerEvents:
    """Serves GetContainerEvents.

    Args:
        context: the manager.
        loop: the event loop that serves.
    """

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._subscribers: set[_Subscriber] = set()
        self._ended = False
        context.events.listen(self._heard)

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.GetContainerEvents", CallKind.STREAM, self.stream, end=self.end)
        ]

    async def stream(
        self, request: cri.GetEventsRequest
    ) -> AsyncIterator[cri.ContainerEventResponse]:
        """GetContainerEvents."""
        subscriber = _Subscriber()
        if not self._ended:
            self._subscribers.add(subscriber)
        try:
            while not (self._over(subscriber) and subscriber.queue.empty()):
                reply = await subscriber.queue.get()
                if reply is not None:
                    yield reply
        finally:
            self._subscribers.discard(subscriber)
        if subscriber.cut_off:
            raise ResourceExhausted(
                f"this subscriber fell {BACKLOG} events behind and was cut off: list, and "
                "subscribe again"
            )
        raise Unavailable("the manager is stopping: list, and subscribe again when it is back")

    def end(self) -> None:
        """End every subscription, now and later, after what is in its backlog; on the loop."""
        self._ended = True
        for subscriber in self._subscribers:
            # One with a full backlog does not wait for more.
            with contextlib.suppress(asyncio.QueueFull):
                subscriber.queue.put_nowait(None)
        self._subscribers.clear()

    def _over(self, subscriber: _Subscriber) -> bool:
        return self._ended or subscriber.cut_off

    def _heard(self, event: Event, removed: PodRecord | None) -> None:
        """Called in the order of the changes; the statuses are those of this moment."""
        if self._ended:
            return  # Nobody listens, and the loop may be closed.
        for kind in _KINDS.get(event.kind, ()):
            reply = self._reply(event, kind, removed)
            self._loop.call_soon_threadsafe(self._hand_out, reply)

    def _reply(
        self, event: Event, kind: cri.ContainerEventType, removed: PodRecord | None
    ) -> cri.ContainerEventResponse:
        store = self._context.store
        # A kubelet ignores an event that comes without the pod's status.
        pod = removed or store.pods.get(event.pod_id)
        return cri.ContainerEventResponse(
            container_id=event.subject,
            container_event_type=kind,
            created_at=event.at,
            pod_sandbox_status=replies.pod_status(pod) if pod else None,
            containers_statuses=replies.vm_statuses(store.vms_of(event.pod_id)),
        )

    def _hand_out(self, reply: cri.ContainerEventResponse) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.queue.put_nowait(reply)
            except asyncio.QueueFull:
                subscriber.cut_off = True
                self._subscribers.discard(subscriber)
                log.warning("event subscriber cut off", extra={"behind": BACKLOG})
