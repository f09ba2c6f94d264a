"""GetContainerEvents: who falls behind is cut off, and a manager that stops says so."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from attrs import evolve

from tests.core.cri.serving import Serving
from tests.fakes.manager import Manager, Node
from tests.polling import until
from virtlet.cli.client import Client
from virtlet.core.cri.calls import Call
from virtlet.core.cri.event_calls import BACKLOG, ContainerEvents
from virtlet.core.events import EventTeller
from virtlet.cri import api_pb2 as cri
from virtlet.model.event import Event, EventKind

BULK = {"note": "x" * 20_000}
"""Annotations that fill the buffers of a connection nobody reads from."""


class Told:
    """A manager with a VM, whose events are told through the socket."""

    def __init__(self, root: Path) -> None:
        self.manager = Manager(Node(root))
        self.pod = self.manager.run()
        self.vm = self.manager.create(self.pod)
        record = self.manager.pod(self.pod)
        config = evolve(record.pod.config, annotations=BULK)
        self.manager.store.put_pod(evolve(record, pod=evolve(record.pod, config=config)))
        context = self.manager.context
        self.teller = context.events = EventTeller(context.hooks, context.profiles)
        self.teller.start()
        self.serving = Serving(root / "s.sock", self._calls)

    def _calls(self, loop: asyncio.AbstractEventLoop) -> Sequence[Call]:
        return ContainerEvents(self.manager.context, loop).calls()

    def tell(self, number: int) -> None:
        """Tell an event that carries its number."""
        self.teller.tell(
            Event(kind=EventKind.VM_STOPPED, subject=self.vm, pod_id=self.pod, at=number), ""
        )

    def close(self) -> None:
        self.serving.stop()
        self.teller.stop()
        self.manager.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.close()


Subscribe = Callable[[], Any]


@pytest.fixture
def subscribe(told: Told, tmp_path: Path) -> Iterator[Subscribe]:
    """Subscribes on a connection of its own; returns the stream, after its first event, 0."""
    clients: list[Client] = []

    def make() -> Any:
        client = Client(tmp_path / "s.sock")
        clients.append(client)
        stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        first = threading.Event()

        def read_one() -> None:
            next(stream)
            first.set()

        threading.Thread(target=read_one, daemon=True).start()
        # A subscription is there once an event arrives.
        while not first.wait(0.1):
            told.tell(0)
        return stream

    yield make
    for client in clients:
        client.__exit__(None, None, None)


class Reader:
    """Reads a stream to its end."""

    def __init__(self, stream: Any) -> None:
        self.numbers: list[int] = []
        self.error: Any = None
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                if event.created_at:
                    self.numbers.append(event.created_at)
        except grpc.RpcError as error:
            self.error = error

    def wait_for(self, count: int) -> None:
        """Wait until so many events have come."""
        until(lambda: len(self.numbers) >= count, f"{count} events")

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_subscriber_that_does_not_read_is_cut_off_and_another_gets_every_event(
    told: Told, subscribe: Subscribe
) -> None:
    slow, fast = subscribe(), Reader(subscribe())
    number = 0
    # What the connection buffers comes on top of the backlog.
    while number < 3 * BACKLOG:
        number += 1
        told.tell(number)
        if number % 100 == 0:
            fast.wait_for(number)
    assert fast.numbers == list(range(1, number + 1))

    late = Reader(slow)
    late.join()
    assert late.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "list, and subscribe again" in late.error.details()
    # What it got before is without a gap.
    assert late.numbers == list(range(1, len(late.numbers) + 1))
    assert BACKLOG <= len(late.numbers) < number
    told.tell(number + 1)
    fast.wait_for(number + 1)


def test_subscribers_are_told_that_the_manager_stops_and_do_not_hold_it_up(
    told: Told, subscribe: Subscribe
) -> None:
    readers = [Reader(subscribe()) for _ in range(2)]
    told.tell(1)
    for reader in readers:
        reader.wait_for(1)
    started = time.monotonic()
    told.serving.stop(grace=20)
    assert time.monotonic() - started < 10
    for reader in readers:
        reader.join()
        assert reader.numbers == [1]
        assert reader.error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the manager is stopping" in reader.error.details()
    told.tell(2)  # nobody is there to hear it, and nothing breaks


def test_a_subscriber_that_does_not_read_does_not_hold_up_the_end(
    told: Told, subscribe: Subscribe
) -> None:
    stream = subscribe()
    for number in range(1, BACKLOG):
        told.tell(number)
    started = time.monotonic()
    told.serving.stop(grace=20)
    assert time.monotonic() - started < 10
    stream.cancel()
