"""What is kept of a runtime's lists, whatever the order in which they come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import uvloop
from google.protobuf.message import DecodeError

from criproxy.runtimes.last_known import LastKnown
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
