"""Somebody who follows the events of a node."""

import threading
import time

import grpc

from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

CREATED, STARTED, STOPPED, DELETED = (
    cri.CONTAINER_CREATED_EVENT,
    cri.CONTAINER_STARTED_EVENT,
    cri.CONTAINER_STOPPED_EVENT,
    cri.CONTAINER_DELETED_EVENT,
)


class Subscriber:
    """Collects container events on a thread."""

    def __init__(self, node: Playground) -> None:
        self.client = node.client()
        self.events: list[cri.ContainerEventResponse] = []
        self.stream = self.client.runtime.GetContainerEvents(cri.GetEventsRequest())
        self.thread = threading.Thread(target=self._collect, daemon=True)
        self.thread.start()
        # A subscription is there once the server has the request.
        time.sleep(0.3)

    def _collect(self) -> None:
        try:
            for event in self.stream:
                self.events.append(event)
        except grpc.RpcError:
            pass

    def of(self, *ids: str) -> list[tuple[str, int]]:
        """(id, kind) of the events of some pods and VMs."""
        return [(e.container_id, e.container_event_type) for e in self.events_of(*ids)]

    def events_of(self, *ids: str) -> list[cri.ContainerEventResponse]:
        """The events of some pods and VMs, whole."""
        return [event for event in self.events if event.container_id in ids]

    def close(self) -> None:
        self.stream.cancel()
        self.thread.join(5)
