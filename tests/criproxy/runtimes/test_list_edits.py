"""What calls have changed since a list was asked for."""

from __future__ import annotations

import time

from criproxy.runtimes.list_edits import CONTAINERS, IMAGES, PODS, ListEdits, container_made, done
from virtlet.cri import api_pb2 as cri


def listed(**states: cri.ContainerState) -> cri.ListContainersResponse:
    return cri.ListContainersResponse(
        containers=[cri.Container(id=name, state=state) for name, state in states.items()]
    )


def applied(edits: ListEdits, answer: cri.ListContainersResponse) -> dict[str, int]:
    for change in edits.since(CONTAINERS):
        change(answer)
    return {c.id: c.state for c in answer.containers}


def test_a_list_asked_for_after_a_change_has_it_and_one_asked_for_before_need_not() -> None:
    before = time.monotonic()
    edits = ListEdits()
    edits.add(done("StartContainer", "a"))
    edits.listed(CONTAINERS, before)
    assert applied(edits, listed(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_RUNNING}
    time.sleep(0.001)
    edits.listed(CONTAINERS, time.monotonic())
    assert applied(edits, listed(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_CREATED}


def test_a_list_that_is_ahead_of_a_change_keeps_its_state_and_its_items() -> None:
    edits = ListEdits()
    edits.add(container_made("a", cri.CreateContainerRequest(pod_sandbox_id="p")))
    edits.add(done("StartContainer", "a"))
    assert applied(edits, listed(a=cri.CONTAINER_EXITED)) == {"a": cri.CONTAINER_EXITED}
    edits.add(done("RemoveContainer", "a"))
    assert applied(edits, listed(a=cri.CONTAINER_EXITED)) == {}


def test_other_items_are_left_alone() -> None:
    edits = ListEdits()
    for method in ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"):
        edits.add(done(method, "a"))
    assert applied(edits, listed(ab=cri.CONTAINER_RUNNING)) == {"ab": cri.CONTAINER_RUNNING}


def test_changes_that_no_message_describes_are_not_known() -> None:
    edits = ListEdits()
    edits.add(done("PullImage", ""))
    assert not edits.known(IMAGES)
    assert edits.known(PODS)
    time.sleep(0.001)
    edits.listed(IMAGES, time.monotonic())
    assert edits.known(IMAGES)


def test_of_more_changes_than_are_remembered_it_is_not_known_what_they_were() -> None:
    edits = ListEdits()
    for number in range(5000):
        edits.add(done("RemoveContainer", f"c{number}"))
        edits.add(done("PullImage", ""))
    assert not edits.known(CONTAINERS)
    assert len(edits.since(CONTAINERS)) < 1000
    time.sleep(0.001)
    edits.listed(CONTAINERS, time.monotonic())
    assert edits.known(CONTAINERS)
    assert edits.since(CONTAINERS) == ()
