"""Commands whose streams flow while they run."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.guest_agent.caller import Caller, capture, stream
from tests.plugins.guest_agent.test_captured import gone, running
from virtlet.errors import DeadlineExceeded, FailedPrecondition
from virtlet.model.execution import GuestCommand
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import ReplyBudget
from virtlet.plugins.guest_agent.live import BASE, LiveSession

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every session removes its files and closes its handles, however it ends."""
    guest = request.fixturenames
    agents = [request.getfixturevalue(n) for n in ("agent", "debian", "tiny") if n in guest]
    yield
    for agent in agents:
        assert files(agent) == b""


def files(agent: Agent) -> bytes:
    return capture(agent, "sh", "-c", f"ls -A {BASE} 2>/dev/null").output


def test_output_errors_and_exit_code_come_back(agent: Agent) -> None:
    result = stream(agent, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.output, result.errors) == (7, b"out\n", b"err\n")


def test_output_comes_while_the_command_runs(debian: Agent) -> None:
    caller = Caller()
    stream(debian, "sh", "-c", "echo first; sleep 2; echo second", caller=caller)
    (early, first), (late, second) = caller.arrivals
    assert (first, second) == (b"first\n", b"second\n")
    assert late - early > 1.5


def test_a_conversation_goes_back_and_forth(agent: Agent) -> None:
    caller = Caller([(0, b"one\n"), (b"<one>", b"two\n"), (b"<two>", b"three\n")])
    script = 'while read -r word; do echo "<$word>"; done; echo end; exit 4'
    result = stream(agent, "sh", "-c", script, caller=caller, stdin=True)
    assert (result.code, result.output) == (4, b"<one>\n<two>\n<three>\nend\n")
    assert [data for _, data in caller.arrivals][:2] == [b"<one>\n", b"<two>\n"]


@pytest.mark.parametrize("text", [b"", b"x"])
def test_input_that_ends_at_once_is_not_lost(agent: Agent, text: bytes) -> None:
    pieces = [(0.0, text)] if text else []
    assert stream(agent, "cat", caller=Caller(pieces), stdin=True).output == text


def test_a_command_without_input_reads_none(debian: Agent) -> None:
    assert stream(debian, "cat").output == b""


def test_large_data_comes_through_both_ways(debian: Agent) -> None:
    data = os.urandom(5 * MIB + 17)
    result = stream(debian, "cat", caller=Caller([(0, data)]), stdin=True)
    assert hashlib.sha256(result.output).digest() == hashlib.sha256(data).digest()


def test_large_data_comes_through_a_real_machine(tiny: Agent) -> None:
    data = os.urandom(MIB + 4711)
    script = "tee /run/x | sha256sum; cat /run/x >&2; cat /run/x >&2; rm /run/x"
    result = stream(tiny, "sh", "-c", script, caller=Caller([(0, data)]), stdin=True)
    assert result.output.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert result.errors == data * 2


def test_many_short_lines_come_in_order(agent: Agent) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done"
    expected = b"".join(b"%d\n" % number for number in range(3000))
    assert stream(agent, "sh", "-c", script).output == expected


def test_a_flood_waits_for_a_slow_caller_and_fills_no_guest(debian: Agent) -> None:
    class Slow(Caller):
        largest = 0

        def write_output(self, data: bytes) -> None:
            super().write_output(data)
            if len(self.arrivals) % 20 == 1:
                used = capture(debian, "du", "-sk", BASE).output.split()[0]
                self.largest = max(self.largest, int(used))

    caller = Slow()
    code = stream(debian, "head", "-c", str(24 * MIB), "/dev/zero", caller=caller).code
    assert (code, len(caller.output)) == (0, 24 * MIB)
    assert 0 < caller.largest <= 4096


@pytest.mark.parametrize("tty", [False, True])
def test_the_guests_list_of_processes_shows_the_command_and_no_script_of_ours(
    agent: Agent, tty: bool
) -> None:
    """As `ps` does, with every argument."""
    look = "for p in /proc/[0-9]*; do tr '\\0\\n' ' ~' <$p/cmdline; echo; done 2>/dev/null"
    shown = [b""]

    class Looking(Caller):
        def read_input(self, limit: int, timeout: float) -> bytes | None:
            if b"sleep 4727 " not in shown:
                shown[:] = capture(agent, "sh", "-c", look).output.splitlines()
            return super().read_input(limit, timeout)

        @property
        def gone(self) -> bool:
            return b"sleep 4727 " in shown

    stream(agent, "sleep", "4727", caller=Looking(open_end=True), stdin=True, tty=tty)
    ours = [line for line in shown if b"virtlet" in line and b"cmdline" not in line]
    assert ours
    assert all(len(line) < 120 and b"~" not in line for line in ours), ours


def test_input_that_comes_in_pieces_is_written_in_few(debian: Agent) -> None:
    """Every write is a process; `kubectl cp` sends pieces of 32 KiB. Numbers of processes count."""

    class Pieces(Caller):
        def read_input(self, limit: int, timeout: float) -> bytes | None:
            if timeout < 0.001:
                return None  # the next piece takes its moment
            return super().read_input(min(limit, 32 << 10), timeout)

    def last() -> int:
        return int(capture(debian, "sh", "-c", "echo $$").output)

    before = last()
    caller = Pieces([(0, bytes(4 * MIB))])
    assert stream(debian, "wc", "-c", caller=caller, stdin=True).output == b"%d\n" % (4 * MIB)
    assert last() - before < 60


def test_a_caller_who_leaves_takes_the_command_along(agent: Agent) -> None:
    caller = Caller(leaves_at=b"going")
    script = "sleep 4721 & setsid sleep 4722 & echo going; sleep 4723"
    assert stream(agent, "sh", "-c", script, caller=caller, timeout=None).code == 137
    assert gone(agent, "4721", "4722", "4723")


def test_a_caller_who_leaves_while_the_command_reads_nothing(debian: Agent) -> None:
    caller = Caller([(0, bytes(MIB))], leaves_after=1.5)
    assert stream(debian, "sleep", "4724", caller=caller, stdin=True, timeout=None).code == 137
    assert gone(debian, "4724")
    assert gone(debian, "bs=65536")


def test_a_command_that_ends_before_its_input_leaves_no_writer(agent: Agent) -> None:
    caller = Caller([(0, bytes(MIB))], open_end=True)
    assert stream(agent, "sleep", "1", caller=caller, stdin=True).code == 0
    assert gone(agent, "bs=65536")


def test_a_command_that_takes_too_long_is_killed(debian: Agent) -> None:
    with pytest.raises(DeadlineExceeded):
        stream(debian, "sleep", "4725", timeout=1)
    assert gone(debian, "4725")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("no-such-program", "no such program"),
        ("/no/such", "no such program"),
        ("--help", "no such program"),
        ("/etc/passwd", "not executable"),
        ("/etc", "no such program"),
        ("exit", "no such program"),
    ],
)
def test_what_is_no_program_is_named_with_the_reason(debian: Agent, program: str, why: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"cannot run '{program}' .*{why}"):
        stream(debian, program)


def test_variables_and_arguments_reach_the_program_as_they_are(agent: Agent) -> None:
    odd = {"PATH": "/nowhere:/bin:/usr/bin", "dir": "mine", "n": "$(id)", "IFS": "x", "A": "a\nb'"}
    caller = Caller()
    argv = ("sh", "-c", 'printf "%s|" "$dir" "$n" "$A" "$PATH" "$@"', "sh", "a b", "", "*", "-x")
    assert LiveSession(agent, GuestCommand(argv=argv), odd).run(caller, 30) == 0
    assert caller.output == b"mine|$(id)|a\nb'|/nowhere:/bin:/usr/bin|a b||*|-x|"


def test_a_program_is_found_in_the_containers_own_path(debian: Agent) -> None:
    with pytest.raises(FailedPrecondition, match="no such program"):
        LiveSession(debian, GuestCommand(argv=("ls",)), {"PATH": "/nowhere"}).run(Caller(), 30)
    assert (
        LiveSession(debian, GuestCommand(argv=("true",)), {"PATH": "/bin"}).run(Caller(), 30) == 0
    )


def test_a_signal_is_told_as_shells_tell_it(debian: Agent) -> None:
    assert stream(debian, "sh", "-c", "kill -KILL $$").code == 137


def test_sessions_of_one_guest_flow_side_by_side(debian: Agent) -> None:
    outputs: list[bytes] = []

    def run(number: int) -> None:
        caller = Caller([(0.2, b"%d\n" % number)])
        outputs.append(stream(debian, "cat", caller=caller, stdin=True).output)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [b"%d\n" % number for number in range(5)]


def test_what_a_manager_that_died_left_behind_is_ended_by_the_next_session(
    debian_guest: Path,
) -> None:
    """The connection breaks with the manager, so that nobody clears up."""
    dying = Agent(debian_guest, "default/web/guest", ReplyBudget(MIB))
    caller = Caller(open_end=True)

    class Died(Exception):
        pass

    def die(data: bytes) -> None:
        dying.close()

    caller.write_output = die  # type: ignore[method-assign]
    with pytest.raises(Exception, match="stopping|lost"):
        stream(dying, "sh", "-c", "echo x; sleep 4726", caller=caller, stdin=True, timeout=None)

    after = Agent(debian_guest, "default/web/guest", ReplyBudget(MIB))
    try:
        assert running(after, "4726")
        assert files(after) != b""
        assert stream(after, "true").code == 0
        assert gone(after, "4726")
        assert files(after) == b""
    finally:
        after.close()
