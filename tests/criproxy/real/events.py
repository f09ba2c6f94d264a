"""Container events as a subscriber of the proxy hears them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.criproxy.fakes.proxy import Client
from virtlet.cri import api_pb2 as cri

#: A container's life.
LIFE = (
    cri.CONTAINER_CREATED_EVENT,
    cri.CONTAINER_STARTED_EVENT,
    cri.CONTAINER_STOPPED_EVENT,
    cri.CONTAINER_DELETED_EVENT,
)


class Heard:
    """What was heard: container ids with their events, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def of(self, container: str) -> list[int]:
        """One container's events, in order."""
        return [kind for some_id, kind in self.events if some_id == container]


@contextmanager
def listening(path: Path) -> Iterator[Heard]:
    """Subscribe at a socket."""
    heard = Heard()
    with Client(path) as client:
        stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())

        def collect() -> None:
            try:
                for event in stream:
                    heard.events.append((event.container_id, event.container_event_type))
            except grpc.RpcError:
                return

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield heard
        finally:
            stream.cancel()
            thread.join(5)
