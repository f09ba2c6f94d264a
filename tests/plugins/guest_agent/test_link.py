"""Requests and answers, when the agent or the guest misbehaves."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.plugins.guest_agent.fake_agent import Conversation, FakeAgent, Script, listening
from tests.polling import until
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable
from virtlet.plugins.guest_agent.answers import ReplyBudget
from virtlet.plugins.guest_agent.link import AgentError, Link
from virtlet.plugins.guest_agent.waiting import CallerGone, Deadline, TimeUp


@pytest.fixture
def agent_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a") / "s"


@pytest.fixture
def link(agent_socket: Path, budget: ReplyBudget) -> Iterator[Link]:
    link = Link(agent_socket, "default/web/guest", budget)
    yield link
    link.close()


def soon() -> Deadline:
    """Longer than anything here takes."""
    return Deadline(20)


def polite(answer: Callable[[Conversation, dict[str, object]], None]) -> Script:
    """An agent that synchronises and leaves all else to `answer`."""

    def script(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if not conversation.answer_sync(request):
                answer(conversation, request)

    return script


def echo(conversation: Conversation, request: dict[str, object]) -> None:
    conversation.answer(request, request["arguments"])


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(
    link: Link, agent_socket: Path
) -> None:
    def late(conversation: Conversation, request: dict[str, object]) -> None:
        if request["arguments"] == {"n": 1}:
            time.sleep(0.5)
        echo(conversation, request)

    with listening(agent_socket, polite(late)):
        with pytest.raises(TimeUp):
            link.call("guest-ping", {"n": 1}, Deadline(0.2))
        assert link.call("guest-ping", {"n": 2}, soon()) == {"n": 2}
        link.close()


def test_what_is_left_of_an_earlier_conversation_is_skipped(link: Link, agent_socket: Path) -> None:
    def script(conversation: Conversation) -> None:
        conversation.send(b'alf of an answer"}}\n{"return": {"n": 9}}\n{"ret')
        polite(echo)(conversation)

    with listening(agent_socket, script):
        assert link.call("guest-ping", {"n": 1}, soon()) == {"n": 1}
        link.close()


def test_an_agent_that_is_still_booting_is_waited_for(link: Link, agent_socket: Path) -> None:
    def script(conversation: Conversation) -> None:
        time.sleep(0.6)
        polite(echo)(conversation)

    with listening(agent_socket, script):
        assert link.call("guest-ping", {"n": 1}, Deadline(10)) == {"n": 1}
        link.close()


def test_a_guest_without_an_agent_keeps_nobody_longer_than_they_want(
    link: Link, agent_socket: Path
) -> None:
    def deaf(conversation: Conversation) -> None:
        while conversation.read() is not None:
            pass

    with listening(agent_socket, deaf):
        started = time.monotonic()
        with pytest.raises(TimeUp):
            link.call("guest-ping", {}, Deadline(0.5))
        with pytest.raises(CallerGone):
            link.call("guest-ping", {}, Deadline(None, lambda: time.monotonic() > started + 0.8))
        assert time.monotonic() - started < 20
        assert "install the package qemu-guest-agent" in link.silence()
        link.close()


def test_many_waiting_callers_ask_a_silent_guest_only_once(link: Link, agent_socket: Path) -> None:
    def deaf(conversation: Conversation) -> None:
        while conversation.read() is not None:
            pass

    with listening(agent_socket, deaf) as agent:
        for _ in range(5):
            with pytest.raises(TimeUp):
                link.call("guest-ping", {}, Deadline(0.1))
        time.sleep(0.1)
        assert agent.requests == ["guest-sync-delimited"]
        link.close()


def test_a_guest_that_reads_nothing_does_not_hold_a_caller_who_has_much_to_say(
    link: Link, agent_socket: Path
) -> None:
    done = threading.Event()

    def stops_reading(conversation: Conversation) -> None:
        request = conversation.read()
        assert request is not None
        conversation.answer_sync(request)
        done.wait(30)

    with listening(agent_socket, stops_reading):
        started = time.monotonic()
        with pytest.raises(TimeUp):
            link.call("guest-exec", {"input-data": "x" * (4 << 20)}, Deadline(0.5))
        assert time.monotonic() - started < 10
        done.set()
        link.close()


def test_after_half_a_request_a_new_connection_is_made(link: Link, agent_socket: Path) -> None:
    first = threading.Event()

    def script(conversation: Conversation) -> None:
        if not first.is_set():
            first.set()
            request = conversation.read()
            assert request is not None
            conversation.answer_sync(request)
            time.sleep(1)
        else:
            polite(echo)(conversation)

    with listening(agent_socket, script) as agent:
        with pytest.raises(TimeUp):
            link.call("guest-exec", {"input-data": "x" * (4 << 20)}, Deadline(0.3))
        assert link.call("guest-ping", {"n": 3}, soon()) == {"n": 3}
        assert len(agent.conversations) == 2
        link.close()


def test_an_answer_without_an_end_is_cut_off_and_the_next_call_works(
    link: Link, agent_socket: Path
) -> None:
    def endless(conversation: Conversation, request: dict[str, object]) -> None:
        if request["arguments"] == {"n": 1}:
            for _ in range(100):
                conversation.send(b"x" * 65536)
        else:
            echo(conversation, request)

    with listening(agent_socket, polite(endless)):
        with pytest.raises(Unavailable, match="more than 100000 bytes"):
            link.call("guest-ping", {"n": 1}, soon(), limit=100_000)
        assert link.call("guest-ping", {"n": 2}, soon()) == {"n": 2}
        link.close()


def test_large_answers_of_all_guests_share_a_budget_that_is_given_back(agent_socket: Path) -> None:
    def large(conversation: Conversation, request: dict[str, object]) -> None:
        conversation.answer(request, "x" * (4 << 20))

    budget = ReplyBudget(3 << 20)
    link = Link(agent_socket, "default/web/guest", budget)
    with listening(agent_socket, polite(large)):
        budget.take(2 << 20)
        with pytest.raises(ResourceExhausted, match="try again"):
            link.call("guest-ping", {}, soon(), limit=8 << 20)
        budget.give_back(2 << 20)
        for _ in range(3):
            assert len(link.call("guest-ping", {}, soon(), limit=8 << 20).whole()) == 3 << 20
        unread = link.call("guest-ping", {}, soon(), limit=8 << 20)
        with pytest.raises(ResourceExhausted):
            budget.take(2 << 20)
        del unread
        link.close()
    budget.take(3 << 20)


@pytest.mark.parametrize(
    "answer", [b"{}\n", b"[1]\n", b"nonsense\n", b'{"return": {}, "id": 77}\n', b"\xff\xfe\n"]
)
def test_what_is_no_answer_is_an_error_and_not_a_crash(
    link: Link, agent_socket: Path, answer: bytes
) -> None:
    def script(conversation: Conversation, request: dict[str, object]) -> None:
        conversation.send(answer)

    with listening(agent_socket, polite(script)):
        with pytest.raises((Unavailable, AgentError)):
            link.call("guest-ping", {}, soon())
        link.close()


def test_a_forbidden_command_says_where_to_allow_it(link: Link, agent_socket: Path) -> None:
    def script(conversation: Conversation, request: dict[str, object]) -> None:
        conversation.refuse(request, "CommandNotFound", "Command guest-exec has been disabled")

    with listening(agent_socket, polite(script)):
        with pytest.raises(FailedPrecondition, match="off block-rpcs"):
            link.call("guest-exec", {}, soon())
        link.close()


def test_closing_ends_the_wait_of_everybody(link: Link, agent_socket: Path) -> None:
    def silent(conversation: Conversation, request: dict[str, object]) -> None:
        pass

    errors: list[Exception] = []

    def wait() -> None:
        try:
            link.call("guest-ping", {}, Deadline(None))
        except Unavailable as error:
            errors.append(error)

    with listening(agent_socket, polite(silent)) as agent:
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: "guest-ping" in agent.requests)
        link.close()
        for thread in threads:
            thread.join(5)
        assert len(errors) == 3


def test_a_machine_that_is_gone_is_told_at_once(link: Link) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="lost the guest agent"):
        link.call("guest-ping", {}, Deadline(None))
    assert time.monotonic() - started < 10


def test_two_managers_at_one_socket_do_not_mix_their_answers(
    link: Link, agent_socket: Path, budget: ReplyBudget
) -> None:
    other = Link(agent_socket, "default/web/guest", budget)
    with listening(agent_socket, polite(echo)):
        assert link.call("guest-ping", {"n": 1}, soon()) == {"n": 1}
        with pytest.raises(TimeUp):
            other.call("guest-ping", {"n": 2}, Deadline(0.3))
        link.close()
        assert other.call("guest-ping", {"n": 3}, soon()) == {"n": 3}
        other.close()


def test_the_fake_agent_ends(agent_socket: Path) -> None:
    """What the tests above lean on leaves no thread behind."""
    before = threading.active_count()
    agent = FakeAgent(agent_socket, polite(echo))
    agent.close()
    assert threading.active_count() == before
