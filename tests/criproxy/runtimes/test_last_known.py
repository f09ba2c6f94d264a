"""What is known of a runtime, and what calls change of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import uvloop
from google.protobuf.message import DecodeError

from criproxy.runtimes.last_known import LastKnown
from criproxy.runtimes.list_edits import CONTAINERS, IMAGES, PODS, ListEdits, container_made, done
from tests.polling import until_async
from virtlet.cri import api_pb2 as cri

NAME = "ListPodSandbox"
MALFORMED = b"\x0a\x02\x0a\xff"
Keep = Callable[[LastKnown, bytes, float], None]


def listed(*ids: str) -> bytes:
    return cri.ListPodSandboxResponse(items=[cri.PodSandbox(id=i) for i in ids]).SerializeToString()


def soon(last: LastKnown, raw: bytes, asked: float) -> None:
    last.store_soon(NAME, raw, asked)


def at_once(last: LastKnown, raw: bytes, asked: float) -> None:
    last.store(NAME, raw, asked)


def kept(last: LastKnown) -> bytes:
    known = last.answer(NAME)
    assert known is not None
    return known.raw


@pytest.mark.parametrize("first", [soon, at_once])
@pytest.mark.parametrize("second", [soon, at_once])
def test_the_answer_to_the_later_question_is_kept(first: Keep, second: Keep) -> None:
    async def scenario() -> None:
        last = LastKnown()
        first(last, listed("new"), 2.0)
        second(last, listed("old"), 1.0)
        assert kept(last) == listed("new")
        assert last.sandboxes == {"new"}

    uvloop.run(scenario())


def test_what_waits_is_learnt_a_moment_later() -> None:
    async def scenario() -> None:
        last = LastKnown()
        soon(last, listed("a"), 1.0)
        soon(last, listed("a", "b"), 2.0)
        await until_async(lambda: last.sandboxes == {"a", "b"})
        assert not last.had("a")

    uvloop.run(scenario())


def test_a_malformed_answer_leaves_the_one_before() -> None:
    async def scenario() -> None:
        last = LastKnown()
        soon(last, listed("a"), 1.0)
        with pytest.raises(DecodeError):
            at_once(last, MALFORMED, 2.0)
        assert kept(last) == listed("a")
        soon(last, MALFORMED, 3.0)
        assert kept(last) == listed("a")

    uvloop.run(scenario())


def containers(**states: cri.ContainerState) -> cri.ListContainersResponse:
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
    assert applied(edits, containers(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_RUNNING}
    edits.listed(CONTAINERS, time.monotonic() + 1)
    assert applied(edits, containers(a=cri.CONTAINER_CREATED)) == {"a": cri.CONTAINER_CREATED}


def test_a_list_that_is_ahead_of_a_change_keeps_its_state_and_its_items() -> None:
    edits = ListEdits()
    edits.add(container_made("a", cri.CreateContainerRequest(pod_sandbox_id="p")))
    edits.add(done("StartContainer", "a"))
    assert applied(edits, containers(a=cri.CONTAINER_EXITED)) == {"a": cri.CONTAINER_EXITED}
    edits.add(done("RemoveContainer", "a"))
    assert applied(edits, containers(a=cri.CONTAINER_EXITED)) == {}


def test_other_items_are_left_alone() -> None:
    edits = ListEdits()
    for method in ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"):
        edits.add(done(method, "a"))
    assert applied(edits, containers(ab=cri.CONTAINER_RUNNING)) == {"ab": cri.CONTAINER_RUNNING}


def test_changes_that_no_message_describes_are_not_known() -> None:
    edits = ListEdits()
    edits.add(done("PullImage", ""))
    assert not edits.known(IMAGES)
    assert edits.known(PODS)
    edits.listed(IMAGES, time.monotonic() + 1)
    assert edits.known(IMAGES)


def test_of_more_changes_than_are_remembered_it_is_not_known_what_they_were() -> None:
    edits = ListEdits()
    for number in range(5000):
        edits.add(done("RemoveContainer", f"c{number}"))
        edits.add(done("PullImage", ""))
    assert not edits.known(CONTAINERS)
    assert len(edits.since(CONTAINERS)) < 1000
    edits.listed(CONTAINERS, time.monotonic() + 1)
    assert edits.known(CONTAINERS)
    assert edits.since(CONTAINERS) == ()
