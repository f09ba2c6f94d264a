"""Observers are told, and can neither delay nor break what they observe."""

import threading
import time
from importlib.metadata import EntryPoint

import pytest

from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.core import events
from virtlet.core.events import EventTeller
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import discover
from virtlet.core.store.records import PodRecord
from virtlet.model.event import Event, EventKind

EVENT = Event(kind=EventKind.VM_STARTED, subject="vm", pod_id="pod", at=1)


class Slow(Current):
    """Observes nothing until it is let."""

    release = threading.Event()

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        self.release.wait(30)


def _teller(*observers: str) -> EventTeller:
    registry = discover(EntryPoint(n, f"{__name__}:{n}", "virtlet") for n in observers)
    profiles = Profiles({"": {"plugins": list(observers)}}, registry)
    return EventTeller(Hooks(registry), profiles)


def test_a_listener_that_raises_breaks_neither_the_change_nor_other_listeners() -> None:
    teller = _teller()
    heard: list[Event] = []

    def broken(event: Event, removed: PodRecord | None) -> None:
        raise RuntimeError("the loop is closed")

    teller.listen(broken)
    teller.listen(lambda event, removed: heard.append(event))
    teller.tell(EVENT, "")
    assert heard == [EVENT]


def test_an_observer_that_hangs_with_a_full_queue_delays_neither_telling_nor_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Slow.release.clear()
    teller = _teller("Slow")
    teller.start()
    for _ in range(events.QUEUE_LIMIT + 2):
        teller.tell(EVENT, "")
    assert "event dropped" in caplog.text
    started = time.monotonic()
    teller.stop(patience=0.3)
    assert time.monotonic() - started < 10
    Slow.release.set()
