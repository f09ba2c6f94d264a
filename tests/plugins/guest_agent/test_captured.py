"""Commands whose output is wanted at their end."""

import hashlib
import threading
import time

import pytest

from tests.plugins.guest_agent.caller import Caller, capture
from virtlet.errors import DeadlineExceeded, FailedPrecondition
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.command import CapturedSession
from virtlet.plugins.guest_agent.scripts import as_list

MIB = 1 << 20


def running(agent: Agent, argument: str) -> bool:
    """Whether the guest has a process with that argument, one that nothing else uses."""
    found = capture(agent, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'")
    return argument.encode() in found.output.split(b"\n")


def gone(agent: Agent, *arguments: str) -> bool:
    """Whether no process with one of these arguments is left; a killed one may take a moment."""
    end = time.monotonic() + 20
    while any(running(agent, argument) for argument in arguments):
        if time.monotonic() > end:
            return False
    return True


def test_output_errors_and_exit_code_come_back(agent: Agent) -> None:
    result = capture(agent, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.output, result.errors) == (7, b"out\n", b"err\n")


def test_arguments_reach_the_program_as_they_are(agent: Agent) -> None:
    result = capture(agent, "printf", "%s|", "a b", "", "$HOME", "'\"\\", "ü\n")
    assert result.output.decode() == "a b||$HOME|'\"\\|ü\n|"


def test_bytes_of_any_value_come_back(debian: Agent) -> None:
    script = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done'
    assert capture(debian, "sh", "-c", script).output == bytes(range(256))


def test_a_signal_is_told_as_shells_tell_it(debian: Agent) -> None:
    assert capture(debian, "sh", "-c", "kill -TERM $$").code == 128 + 15


def test_a_program_sees_its_environment_and_no_input(debian: Agent) -> None:
    caller = Caller()
    environment = tuple(as_list({"PATH": "/usr/bin:/bin", "COLOUR": "dark = red\n"}))
    code = CapturedSession(debian, ("sh", "-c", 'echo "$COLOUR"; cat'), environment).run(caller, 20)
    assert (code, caller.output) == (0, b"dark = red\n\n")


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "/etc/passwd", "/etc"])
def test_a_program_that_cannot_be_run_is_named_with_the_reason(agent: Agent, program: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"cannot run '{program}' .*(No such|denied)"):
        capture(agent, program)


def test_a_command_that_takes_too_long_is_killed_with_all_it_started(agent: Agent) -> None:
    started = time.monotonic()
    script = "sleep 4711 & setsid sleep 4712 & (sleep 4713; true) & sleep 4714"
    with pytest.raises(DeadlineExceeded, match="'sh' did not end within 1 seconds .* is killed"):
        capture(agent, "sh", "-c", script, timeout=1)
    assert 1 <= time.monotonic() - started < 30
    assert gone(agent, "4711", "4712", "4713", "4714")


def test_a_plain_program_is_killed_too(agent: Agent) -> None:
    with pytest.raises(DeadlineExceeded):
        capture(agent, "sleep", "4715", timeout=0.5)
    assert gone(agent, "4715")


def test_a_caller_who_leaves_takes_the_command_along(debian: Agent) -> None:
    caller = Caller(leaves_after=0.5)
    assert CapturedSession(debian, ("sleep", "4716"), ()).run(caller, None) == 137
    assert gone(debian, "4716")


def test_a_shell_that_kills_its_group_does_not_kill_the_agent(agent: Agent) -> None:
    assert capture(agent, "sh", "-c", "kill -KILL 0").code == 137
    assert capture(agent, "echo", "still there").output == b"still there\n"


def test_output_is_whole_up_to_sixteen_mebibytes_of_each_stream(debian: Agent) -> None:
    script = f"yes 0123456789 | head -c {20 * MIB}; yes abcdefg | head -c {17 * MIB} >&2"
    result = capture(debian, "sh", "-c", script)
    line, other = b"0123456789\n", b"abcdefg\n"
    assert result.output == (line * (16 * MIB // len(line) + 1))[: 16 * MIB]
    assert result.errors == (other * (16 * MIB // len(other) + 1))[: 16 * MIB]


def test_a_real_machine_sends_large_output_whole(tiny: Agent) -> None:
    script = f"yes 0123456789 | head -c {3 * MIB} | tee /proc/self/fd/2"
    result = capture(tiny, "sh", "-c", script)
    digest = hashlib.sha256((b"0123456789\n" * (3 * MIB // 11 + 1))[: 3 * MIB]).digest()
    assert hashlib.sha256(result.output).digest() == digest
    assert hashlib.sha256(result.errors).digest() == digest


def test_commands_of_one_guest_run_side_by_side(agent: Agent) -> None:
    results: list[bytes] = []

    def run(number: int) -> None:
        results.append(capture(agent, "sh", "-c", f"sleep 1; echo {number}").output)

    started = time.monotonic()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    short = [capture(agent, "echo", str(number)).output for number in range(5)]
    assert time.monotonic() - started < 8, "one after the other they take as long"
    for thread in threads:
        thread.join()
    assert short == [b"%d\n" % number for number in range(5)]
    assert sorted(results) == [b"%d\n" % number for number in range(8)]
