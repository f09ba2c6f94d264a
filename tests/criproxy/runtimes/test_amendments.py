"""What calls have changed since a list was asked for."""

from __future__ import annotations

import time

from criproxy.runtimes.amendments import CONTAINERS, IMAGES, PODS, Amendments, container_made, done
from virtlet.cri import api_pb2 as cri


def listed(**states: cri.ContainerState) -> cri.ListContainersResponse:
    return cri.ListContainersResponse(
        containers=[cri.Container(id=name, state=state) for name, state in states.items()]
    )


def applied(amendments: Amendments, answer: cri.ListContainersResponse) -> dict[str, int]:
    for change in amendments.since(CONTAINERS):
        change(answer)
    return {c.id: c.state for c in answer.containers}


def test_a_list_asked_for_after_a_change_has_it_and_one_asked_for_before_need_not() -> None:
    before = time.monotonic()
    amendments = Amendments()
    amendments.add(done("StartContainer", "a"))
    amendments.listed(CONTAINERS, before)
    assert applied(amendments, listed(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_RUNNING}
    time.sleep(0.001)
    amendments.listed(CONTAINERS, time.monotonic())
    assert applied(amendments, listed(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_CREATED}


def test_a_list_that_is_ahead_of_a_change_keeps_its_state_and_its_items() -> None:
    amendments = Amendments()
    amendments.add(container_made("a", cri.CreateContainerRequest(pod_sandbox_id="p")))
    amendments.add(done("StartContainer", "a"))
    assert applied(amendments, listed(a=cri.CONTAINER_EXITED)) == {"a": cri.CONTAINER_EXITED}
    amendments.add(done("RemoveContainer", "a"))
    assert applied(amendments, listed(a=cri.CONTAINER_EXITED)) == {}


def test_other_items_are_left_alone() -> None:
    amendments = Amendments()
    for method in ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"):
        amendments.add(done(method, "a"))
    assert applied(amendments, listed(ab=cri.CONTAINER_RUNNING)) == {"ab": cri.CONTAINER_RUNNING}


def test_changes_that_no_message_describes_are_not_known() -> None:
    amendments = Amendments()
    amendments.add(done("PullImage", ""))
    assert not amendments.known(IMAGES)
    assert amendments.known(PODS)
    time.sleep(0.001)
    amendments.listed(IMAGES, time.monotonic())
    assert amendments.known(IMAGES)


def test_of_more_changes_than_are_remembered_it_is_not_known_what_they_were() -> None:
    amendments = Amendments()
    for number in range(5000):
        amendments.add(done("RemoveContainer", f"c{number}"))
        amendments.add(done("PullImage", ""))
    assert not amendments.known(CONTAINERS)
    assert len(amendments.since(CONTAINERS)) < 1000
    time.sleep(0.001)
    amendments.listed(CONTAINERS, time.monotonic())
    assert amendments.known(CONTAINERS)
    assert amendments.since(CONTAINERS) == ()
