"""Guests that stop answering in the middle of a command, and what is made good later."""

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.guest_agent.caller import Caller, capture, stream
from tests.plugins.guest_agent.fake_agent import Conversation, listening
from virtlet.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import ReplyBudget
from virtlet.plugins.guest_agent.command import CapturedSession
from virtlet.plugins.guest_agent.waiting import Boot


class Pausing:
    """A guest that pauses before it answers a given request, and goes on when told."""

    def __init__(self, pause_at: str) -> None:
        self.pause_at = pause_at
        self.resume = threading.Event()
        self.started: list[tuple[str, ...]] = []

    def __call__(self, conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if conversation.answer_sync(request):
                continue
            if request["execute"] == self.pause_at:
                self.resume.wait(30)
            conversation.answer(request, self._answer(request))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = request["arguments"]
        if request["execute"] == "guest-exec":
            self.started.append((arguments["path"], *arguments["arg"]))
            return {"pid": 100 + len(self.started)}
        # All but the sleeper end at once; the killing script ends the sleepers it names.
        program = self.started[arguments["pid"] - 101][0]
        pid = str(arguments["pid"])
        killed = any(argv[0] == "/bin/sh" and pid in argv for argv in self.started)
        if program == "sleep" and not killed:
            return {"exited": False}
        out = base64.b64encode(b"hello\n").decode()
        return {"exited": True, "exitcode": 0, "out-data": out}


@pytest.fixture
def odd(agent_socket: Path, budget: ReplyBudget) -> Iterator[Agent]:
    """The agent at the socket where a test puts an odd guest."""
    agent = Agent(agent_socket, "default/odd/guest", budget, Boot(configured=True))
    yield agent
    agent.close()


@pytest.fixture
def agent_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a") / "s"


@pytest.mark.parametrize(
    ("vm_id", "logged"), [("4f1c", ("4f1c", None)), ("", (None, "default/odd/guest"))]
)
def test_a_log_line_has_the_vms_id_as_vm_and_its_name_as_nothing_else(
    agent_socket: Path,
    budget: ReplyBudget,
    caplog: pytest.LogCaptureFixture,
    vm_id: str,
    logged: tuple[str | None, str | None],
) -> None:
    agent = Agent(agent_socket, "default/odd/guest", budget, Boot(configured=True), vm_id=vm_id)
    # Nobody answers there.
    assert not agent.kill(7)
    agent.close()
    [line] = [record for record in caplog.records if record.message == "commands not killed yet"]
    assert (getattr(line, "vm", None), getattr(line, "vm_name", None)) == logged


def test_a_command_whose_start_was_told_too_late_is_killed_before_the_next(
    odd: Agent, agent_socket: Path
) -> None:
    guest = Pausing("guest-exec")
    with listening(agent_socket, guest):
        with pytest.raises(DeadlineExceeded, match="does not answer any more"):
            capture(odd, "sleep", "100", timeout=0.5)
        guest.resume.set()
        assert capture(odd, "echo", "hello").output == b"hello\n"
        programs = [argv[0] for argv in guest.started]
        assert programs == ["sleep", "/bin/sh", "echo"]
        assert guest.started[1][-1] == "101"


def test_a_command_whose_caller_left_before_it_was_told_is_killed_without_a_next_one(
    odd: Agent, agent_socket: Path
) -> None:
    guest = Pausing("guest-exec")
    with listening(agent_socket, guest):
        threading.Timer(1, guest.resume.set).start()
        session = CapturedSession(odd, ("sleep", "100"), ())
        assert session.run(Caller(leaves_after=0.3), None) == 137
        assert [argv[0] for argv in guest.started] == ["sleep", "/bin/sh"]
        assert guest.started[1][-1] == "101"


def test_a_wedged_guest_holds_nobody_else(debian: Agent, odd: Agent, agent_socket: Path) -> None:
    guest = Pausing("guest-exec-status")
    with listening(agent_socket, guest):
        errors: list[Exception] = []

        def probe() -> None:
            try:
                capture(odd, "sleep", "100", timeout=3)
            except DeadlineExceeded as error:
                errors.append(error)

        threads = [threading.Thread(target=probe) for _ in range(10)]
        for thread in threads:
            thread.start()
        assert capture(debian, "echo", "well").output == b"well\n"
        assert not errors
        guest.resume.set()
        for thread in threads:
            thread.join()
        assert len(errors) == 10


def test_an_agent_that_was_started_again_is_told_apart(odd: Agent, agent_socket: Path) -> None:
    def forgetful(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if conversation.answer_sync(request):
                continue
            if request["execute"] == "guest-exec":
                conversation.answer(request, {"pid": 1})
            else:
                conversation.refuse(request, "GenericError", "PID 1 does not exist")

    with (
        listening(agent_socket, forgetful),
        pytest.raises(Unavailable, match="started again while the command ran"),
    ):
        capture(odd, "sleep", "1")


@pytest.mark.parametrize(
    "answers",
    [
        {"guest-exec": {"pid": "x"}},
        {"guest-exec": [], "guest-exec-status": []},
        {"guest-exec": {"pid": 1}, "guest-exec-status": {"exited": True, "out-data": "%%%"}},
        {"guest-exec": {"pid": 1}, "guest-exec-status": {"exited": True, "out-data": 7}},
        {"guest-exec": {"pid": 1}, "guest-exec-status": {"exited": True, "exitcode": 10**9}},
        {"guest-exec": {"pid": 1}, "guest-exec-status": {"exited": True, "signal": -200}},
    ],
)
def test_a_malicious_guest_gets_an_error_or_an_exit_code(
    odd: Agent, agent_socket: Path, answers: dict[str, object]
) -> None:
    def script(conversation: Conversation) -> None:
        while (request := conversation.read()) is not None:
            if not conversation.answer_sync(request):
                conversation.answer(request, answers.get(request["execute"], "odd"))

    with listening(agent_socket, script):
        for run in (capture, stream):
            try:
                assert 0 <= run(odd, "true", timeout=5).code <= 255
            except (Unavailable, FailedPrecondition):
                continue
