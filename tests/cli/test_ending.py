"""How signals end a command."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from virtlet.cli.ending import SIGNALS, Ended, ended_by_signals, unbroken

COMMAND = """
import signal, time, click
from virtlet.cli import main
from virtlet.cli.ending import ended_by_signals

@click.command()
def wait():
    with ended_by_signals():
        print("up", flush=True)
        while True:
            time.sleep(0.1)

main.group = wait
# A shell's background job is made to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
main.main()
"""


WRITING = """
import os, signal, sys, time, click
from virtlet.cli import main
from virtlet.cli.ending import ended_by_signals

@click.command()
def write():
    with ended_by_signals():
        # As where the kernel's signal comes after the failed write.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        sys.stdin.readline()
        while True:
            print("still there", flush=True)
            time.sleep(0.01)

main.group = write
main.main()
"""


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """The usual ones, however the tests were started; afterwards, the handlers are as before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: int) -> None:
    # To this very thread: what is sent to the process may come a little later.
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_block_and_no_other_breaks_off_what_follows(number: int) -> None:
    with pytest.raises(Ended) as ended, ended_by_signals():
        _send(number)
    assert ended.value.signal == number
    for further in SIGNALS:
        _send(further)


def test_signals_after_a_block_that_was_not_ended_are_ignored() -> None:
    with ended_by_signals():
        pass
    for number in SIGNALS:
        _send(number)


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ended_by_signals():
        _send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_must_not_be_broken_off_is_done_first() -> None:
    made = []
    with pytest.raises(Ended), ended_by_signals():
        with unbroken():
            _send(signal.SIGTERM)
            made.append("process")
        made.append("more")
    assert made == ["process"]


@pytest.mark.parametrize(("number", "says"), [(1, ""), (2, "SIGINT"), (15, "SIGTERM")])
def test_the_command_ends_with_128_and_the_signals_number(number: int, says: str) -> None:
    argv = [sys.executable, "-c", COMMAND]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == "up\n"
        done.send_signal(number)
        _, shown = done.communicate(timeout=60)
    assert done.returncode == 128 + number
    assert shown == (f"ended by {says}\n" if says else "")


def test_a_write_to_a_terminal_that_is_gone_counts_as_its_signal() -> None:
    """Whichever of the two comes first."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", WRITING],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as command:
        os.close(theirs)
        os.write(ours, b"go\n")
        while b"still there" not in os.read(ours, 4096):
            pass
        os.close(ours)
        assert command.wait(60) == 128 + signal.SIGHUP
