"""What an answer of an agent costs the manager, whatever a guest sends."""

import base64
import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.guest_agent.fake_agent import Conversation, listening
from virtlet.errors import ResourceExhausted, Unavailable
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import LONG_TEXT, Answer, Data, Nonsense, ReplyBudget
from virtlet.plugins.guest_agent.command import CapturedSession
from virtlet.plugins.guest_agent.link import LARGEST_REPLY, ONE_GUEST, Link
from virtlet.plugins.guest_agent.waiting import Boot, Deadline, TimeUp

MIB = 1 << 20
MOST_MEMORY = 64 * MIB
LONGEST_STEP = 0.05
"""Seconds of CPU that a step may take."""
PART = 1 << 18
"""Bytes that are received at one time."""

OUTPUT = base64.b64encode(bytes(range(256)) * (16 * MIB // 256))
ENDED = (b'{"return": {"exited": true, "out-data": "', OUTPUT, b'", "err-data": "', OUTPUT, b'"}}')
HOSTILE = {
    "nesting": (b"", b"["),
    "nested objects": (b"", b'{"a":'),
    "many values": (b"[", b"0,"),
    "many empty lists": (b"[", b"[],"),
    "many texts": (b"[", b'"",'),
    "quotes": (b"", b'"'),
    "escapes": (b'"', b"\\\\"),
    "beginnings": (b"", b'"\xff'),
    "long texts": (b"[", b'"%s",' % (b"A" * (17 << 10))),
    "one long text": (b'"', b"AAAA"),
    "a long number": (b"", b"7"),
    "spaces": (b"{", b" "),
    "no json": (b"", b"\x80"),
    "utf-16": ('{"a": ['.encode("utf-16"), b"\0"),
}
"""How the line begins, and what it goes on with up to the limit."""


def honest() -> Iterator[bytes]:
    """The parts of the largest answer of an honest agent."""
    for text in ENDED:
        yield from (text[at : at + PART] for at in range(0, len(text), PART))


def hostile(name: str) -> Iterator[bytes]:
    """The parts of an answer that is as long as it may be."""
    begun, repeated = HOSTILE[name]
    yield begun
    part = repeated * (PART // len(repeated))
    for _ in range((LARGEST_REPLY - len(begun)) // len(part)):
        yield part


def send_honest(conversation: Conversation) -> None:
    for text in ENDED:
        conversation.send(text)
    conversation.send(b"\n")


def read(parts: Iterable[bytes], limit: int = LARGEST_REPLY) -> dict[str, Any]:
    answer = Answer(limit, ReplyBudget(ONE_GUEST))
    for part in parts:
        answer.feed(part)
    return answer.document()


def steps(parts: Iterable[bytes]) -> Iterator[float]:
    """Seconds of CPU of each step of reading an answer."""
    answer = Answer(LARGEST_REPLY, ReplyBudget(ONE_GUEST))
    refused = False
    works: list[Callable[[], object]] = [partial(answer.feed, part) for part in parts]
    for work in (*works, answer.document):
        began = time.thread_time()
        try:
            work()
        except Nonsense:
            refused = True
        yield time.thread_time() - began
        if refused:
            return


def test_no_step_of_reading_the_largest_answer_is_long() -> None:
    assert min(max(steps(honest())) for _ in range(3)) < LONGEST_STEP


@pytest.mark.parametrize("name", HOSTILE)
def test_no_step_of_reading_a_hostile_answer_is_long(name: str) -> None:
    assert min(max(steps(hostile(name))) for _ in range(3)) < LONGEST_STEP


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_takes_a_bounded_memory_and_is_refused(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((Nonsense, ResourceExhausted)):
            read(hostile(name))
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


def test_the_largest_output_of_a_command_takes_a_bounded_memory(tmp_path: Path) -> None:
    def script(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if conversation.answer_sync(request):
                continue
            if request["execute"] == "guest-exec":
                conversation.answer(request, {"pid": 1})
            else:
                send_honest(conversation)

    class Thrown:
        """A caller who keeps nothing."""

        size = 0
        gone = False

        def read_input(self, limit: int, timeout: float) -> bytes:
            return b""

        def write_output(self, data: bytes) -> None:
            self.size += len(data)

        write_error = write_output

        def terminal_size(self) -> None:
            return None

    agent = Agent(
        tmp_path / "s", "default/web/guest", ReplyBudget(ONE_GUEST), Boot(configured=True)
    )
    caller = Thrown()
    with listening(tmp_path / "s", script):
        tracemalloc.start()
        try:
            CapturedSession(agent, ("true",), ()).run(caller, 60)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
        agent.close()
    assert caller.size == 32 * MIB


def test_outputs_of_one_guest_share_its_part_of_the_memory(tmp_path: Path) -> None:
    def script(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if not conversation.answer_sync(request):
                send_honest(conversation)

    budget = ReplyBudget(4 * ONE_GUEST)
    link = Link(tmp_path / "s", "default/web/guest", budget)
    with listening(tmp_path / "s", script):
        kept = link.call("guest-exec-status", {}, Deadline(20), limit=LARGEST_REPLY)
        with pytest.raises(ResourceExhausted, match="try again"):
            link.call("guest-exec-status", {}, Deadline(20), limit=LARGEST_REPLY)
        budget.take(3 * ONE_GUEST)
        del kept
        assert link.call("guest-exec-status", {}, Deadline(20), limit=LARGEST_REPLY)["exited"]
        link.close()


def test_an_answer_that_never_ends_holds_no_memory_once_its_caller_has_left(
    tmp_path: Path,
) -> None:
    def script(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if not conversation.answer_sync(request):
                conversation.send(b'{"return": "' + OUTPUT[: 8 * MIB])

    budget = ReplyBudget(8 * MIB)
    link = Link(tmp_path / "s", "default/web/guest", budget)
    with listening(tmp_path / "s", script):
        with pytest.raises(TimeUp):
            link.call("guest-ping", {}, Deadline(1), limit=LARGEST_REPLY)
        budget.take(8 * MIB)
        link.close()


def test_a_guest_that_sends_lines_without_end_is_cut_off(tmp_path: Path) -> None:
    def script(conversation: Conversation) -> None:
        if conversation.read() is not None:
            conversation.send(b"\n" * MIB)

    link = Link(tmp_path / "s", "default/web/guest", ReplyBudget(MIB))
    with listening(tmp_path / "s", script):
        with pytest.raises(Unavailable, match="sends answers without questions"):
            link.call("guest-ping", {}, Deadline(20))
        link.close()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(returned=values, cut=st.integers(1, 40))
def test_a_small_answer_is_what_json_says_however_it_is_cut(returned: object, cut: int) -> None:
    line = json.dumps({"return": returned}).encode()
    answer = Answer(1 << 20, None)
    for at in range(0, len(line), cut):
        answer.feed(line[at : at + cut])
    assert answer.document() == {"return": returned}


@given(piece=st.binary(min_size=1, max_size=50), cut=st.integers(1000, 20000))
def test_a_long_text_is_decoded_however_it_is_cut(piece: bytes, cut: int) -> None:
    data = piece * (LONG_TEXT // len(piece))
    line = b'{"id": 1, "return": {"buf-b64": "%s", "eof": true}}' % base64.b64encode(data)
    answer = Answer(1 << 20, ReplyBudget(MIB))
    for at in range(0, len(line), cut):
        answer.feed(line[at : at + cut])
    document = answer.document()
    assert document["return"]["eof"] is True
    assert isinstance(document["return"]["buf-b64"], Data)
    assert document["return"]["buf-b64"].whole() == data


@given(st.binary(max_size=200))
def test_any_line_is_an_answer_or_refused(line: bytes) -> None:
    with contextlib.suppress(Nonsense):
        assert isinstance(read([line], limit=150), dict)


@pytest.mark.parametrize("text", [b"A" * 20001, b"A" * 20000 + b"=" * 4 + b"AAAA", b"%" * 20000])
def test_a_long_text_that_is_no_base64_is_refused(text: bytes) -> None:
    with pytest.raises(Nonsense, match="no base64|after its end"):
        read([b'{"return": "%s"}' % text])
