"""What becomes of VMs, as events on their pods at an API server."""

import logging
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.api_server import ApiServer, Served, serving
from tests.fakes.model import make_config, make_node
from tests.polling import until
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.cluster.pod_events import MOST_WAITING, OF_POD, PodEvents, Told
from virtlet.model.event import Event, EventKind
from virtlet.model.pod import PodMetadata
from virtlet.plugins.pod_events.plugin import POD_EVENTS, Plugin

DB = PodMetadata(name="db", uid="uid-of-db", namespace="shop")
WEB = PodMetadata(name="web", uid="uid-of-web", namespace="shop")
AT = 1_767_323_045_600_000_000
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""The same in nanoseconds, and in whole seconds."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, ApiServer()) as server:
        yield server


@pytest.fixture
def api(served: Served) -> ApiServer:
    return served.api


@pytest.fixture
def make_plugin(served: Served, tmp_path: Path) -> Iterator[Callable[..., Plugin]]:
    made: list[Plugin] = []

    def make(**settings: str) -> Plugin:
        plugin = Plugin()
        made.append(plugin)
        values = {"kubeconfig": str(served.kubeconfig), **settings}
        plugin.virtlet_configure(
            make_config([KUBECONFIG, POD_EVENTS], **values), make_node(tmp_path)
        )
        return plugin

    yield make
    for plugin in made:
        plugin.virtlet_shutdown()


@pytest.fixture
def events(served: Served) -> Iterator[PodEvents]:
    """Whose clock stands still: so many may be posted, and no more."""
    cluster = Cluster(str(served.kubeconfig))
    made = PodEvents(cluster, "node-1", clock=lambda: 0.0)
    yield made
    made.stop()
    cluster.close()


def posted(api: ApiServer, count: int = 1) -> list[dict[str, Any]]:
    """The events, once there are so many."""
    until(lambda: len(api.posted) >= count, f"{count} events")
    return list(api.posted.values())


def moment(text: str) -> datetime:
    """A time of RFC 3339, whichever of its forms the client writes."""
    return datetime.fromisoformat(text)


def notice(text: str, pod: PodMetadata = DB) -> Told:
    return Told(pod, "Notice", text, warning=True, at=AT)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"kind": EventKind.VM_NOTICE, "reason": "the guest…", "topic": "ShareNotMounted"},
            ("Warning", "ShareNotMounted", "the guest…"),
        ),
        (
            {"kind": EventKind.VM_NOTICE, "reason": "it booted", "topic": "StartedCold"},
            ("Normal", "StartedCold", "it booted"),
        ),
        (
            {"kind": EventKind.VM_STOPPED, "reason": "Error", "message": "the kernel panicked"},
            ("Warning", "VMEnded", "the kernel panicked"),
        ),
        (
            {"kind": EventKind.VM_STOPPED, "reason": "OOMKilled", "message": "out of memory"},
            ("Warning", "OOMKilled", "out of memory"),
        ),
        (
            {"kind": EventKind.VM_STOPPED, "reason": "Completed", "message": "it powered off"},
            ("Normal", "GuestPoweredOff", "it powered off"),
        ),
        (
            {"kind": EventKind.GUEST_READY, "message": "7 s after its start"},
            ("Normal", "GuestReady", "the guest's agent has answered, 7 s after its start"),
        ),
        (
            {"kind": EventKind.IMAGE_PROGRESS, "message": "5 MiB of 9 MiB"},
            ("Normal", "PullingImage", "image it: 5 MiB of 9 MiB are here"),
        ),
    ],
)
def test_what_a_person_should_know_is_an_event_of_the_pod(
    api: ApiServer,
    make_plugin: Callable[..., Plugin],
    event: dict[str, Any],
    expected: tuple[str, str, str],
) -> None:
    make_plugin().virtlet_event(Event(subject="it", pod=DB, at=AT, **event))
    (found,) = posted(api)
    assert (found["type"], found["reason"], found["message"]) == expected
    assert found["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "db",
        "uid": "uid-of-db",
    }
    assert found["metadata"]["name"].startswith("db.")
    assert (moment(found["firstTimestamp"]), found["count"]) == (THEN, 1)


@pytest.mark.parametrize(
    "event",
    [
        Event(kind=EventKind.VM_STARTED, subject="vm", pod=DB),
        Event(kind=EventKind.IMAGE_PULLED, subject="image", pod=DB),
        Event(kind=EventKind.VM_STOPPED, subject="vm", pod=DB, reason="StartError", message="x"),
        Event(kind=EventKind.VM_NOTICE, subject="vm", reason="of nobody's pod", topic="Notice"),
    ],
)
def test_what_the_kubelet_says_itself_is_not_said_again(
    api: ApiServer, make_plugin: Callable[..., Plugin], event: Event
) -> None:
    plugin = make_plugin()
    plugin.virtlet_event(event)
    last = Event(kind=EventKind.GUEST_READY, subject="vm", pod=DB, message="now")
    plugin.virtlet_event(last)
    assert [found["reason"] for found in posted(api)] == ["GuestReady"]


def test_nothing_is_posted_where_that_is_switched_off(
    api: ApiServer, make_plugin: Callable[..., Plugin]
) -> None:
    event = Event(kind=EventKind.GUEST_READY, subject="vm", pod=DB)
    make_plugin(podEvents="false").virtlet_event(event)
    make_plugin().virtlet_event(event)
    assert len(posted(api)) == 1


def test_without_an_api_server_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    events = PodEvents(Cluster(""))
    events.tell(notice("nobody hears"))
    assert events.work() == math.inf


def test_what_happens_again_is_counted(api: ApiServer, events: PodEvents) -> None:
    events.tell(notice("the disk is full"))
    posted(api)
    events.tell(Told(DB, "Notice", "the disk is full", warning=True, at=AT + 60_000_000_000))
    until(lambda: [found["count"] for found in posted(api)] == [2], "the count")
    (found,) = posted(api)
    assert moment(found["firstTimestamp"]) == THEN
    assert moment(found["lastTimestamp"]) == THEN + timedelta(minutes=1)


def test_progress_is_one_event_whose_message_changes(api: ApiServer, events: PodEvents) -> None:
    def shown() -> list[str]:
        return [found["message"] for found in posted(api)]

    events.tell(Told(DB, "PullingImage", "1 GiB", series="debian", at=AT))
    until(lambda: shown() == ["1 GiB"], "the first size")
    events.tell(Told(DB, "PullingImage", "2 GiB", series="debian", at=AT))
    until(lambda: shown() == ["2 GiB"], "the second size")


def test_an_event_that_the_cluster_has_forgotten_is_posted_anew(
    api: ApiServer, events: PodEvents
) -> None:
    events.tell(notice("again"))
    (first,) = posted(api)
    api.posted.clear()
    events.tell(notice("again"))
    (second,) = posted(api)
    assert second["metadata"]["name"] != first["metadata"]["name"]
    assert second["count"] == 1


def test_a_flood_of_one_pod_is_bounded_and_keeps_nobody_else_from_being_heard(
    api: ApiServer, events: PodEvents, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MOST_WAITING - 1):
        events.tell(notice(f"number {number}"))
    events.tell(notice("of another pod", WEB))
    until(
        lambda: any(found["involvedObject"]["name"] == "web" for found in posted(api)),
        "the other pod's",
    )
    names = [found["involvedObject"]["name"] for found in posted(api)]
    assert names.count("db") == OF_POD[0]
    for number in range(MOST_WAITING):
        events.tell(notice(f"later {number}"))
    until(lambda: "events of pods dropped" in caplog.text, "a line of the log")


def test_an_api_server_that_is_away_is_tried_again(api: ApiServer, events: PodEvents) -> None:
    api.broken = 503
    for _ in range(3):
        events.tell(notice("heard later"))
    until(lambda: len(api.requests) > 0, "an attempt")
    events.tell(notice("heard later"))
    api.broken = 0
    until(lambda: [found["count"] for found in api.posted.values()] == [4], "all of them", 60)


def test_a_namespace_that_takes_none_is_left_alone_and_told_once(
    api: ApiServer, events: PodEvents, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    api.denied.add("events")
    events.tell(notice("first"))
    until(lambda: "events of pods not posted" in caplog.text, "a line of the log")
    events.tell(notice("second"))
    other = PodMetadata(name="db", uid="other", namespace="bank")
    events.tell(notice("elsewhere", other))
    until(lambda: len(api.requests) == 2, "the other namespace's")
    assert [request.split("/")[4] for request in api.requests] == ["shop", "bank"]


def test_a_message_is_cut_and_has_no_line_ends(api: ApiServer, events: PodEvents) -> None:
    events.tell(notice("two\nlines\x1b[2J" + 2000 * "x"))
    (found,) = posted(api)
    assert len(found["message"]) == 1000
    assert found["message"].startswith("two lines [2J")
