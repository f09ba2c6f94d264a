"""How a command ends: with one line instead of a traceback, or by a signal.

Ctrl-C, SIGTERM and SIGHUP end it, but not before it has taken away what it made.
"""

import errno
import os
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class CommandFailed(Exception):
    """The command could not do what it was asked for; the text is for its user."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_unbroken = False
_noted: list[BaseException] = []


class Ended(BaseException):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Ended` in the block at the first of the signals; later ones are ignored.

    Nor are those after the block, so that nothing breaks off the clean-up: `timeout` and `make`
    send a signal each. A signal that is ignored, as by nohup, stays so. Output to a terminal that
    is gone may fail before SIGHUP comes, and counts as that.
    """
    watched = end_at_signals(Ended)
    try:
        yield
    except OSError as error:
        if signal.SIGHUP not in watched or not _is_of_lost_terminal(error):
            raise
        _write_nowhere()
        raise Ended(signal.SIGHUP) from None
    finally:
        ignore_from_now_on(watched)


def end_at_signals(ending: Callable[[int], BaseException]) -> list[signal.Signals]:
    """Have something raised in the main thread at the first of the signals, and at no later one.

    Args:
        ending: what to raise, by the signal's number.

    Returns:
        The signals; one that is ignored, as by nohup, stays so.
    """
    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def end(number: int, frame: FrameType | None) -> None:
        ignore_from_now_on(watched)
        if number == signal.SIGHUP:
            _write_nowhere()
        if not _unbroken:
            raise ending(number)
        _noted.append(ending(number))

    for number in watched:
        signal.signal(number, end)
    return watched


@contextmanager
def unbroken() -> Iterator[None]:
    """A signal during the block ends the command after it, when what it makes is known."""
    global _unbroken
    _unbroken = True
    try:
        yield
    finally:
        _unbroken = False
        if _noted:
            raise _noted.pop()


def ignore_from_now_on(numbers: list[signal.Signals]) -> None:
    """Let signals do nothing any more."""
    for number in numbers:
        # Not SIG_IGN, which a manager that is started for the clean-up would inherit.
        signal.signal(number, lambda number, frame: None)


def _is_of_lost_terminal(error: OSError) -> bool:
    if error.errno != errno.EIO:
        return False
    for output in (1, 2):
        try:
            termios.tcgetattr(output)
        except termios.error as problem:
            if problem.args[0] == errno.EIO:  # no terminal at all is ENOTTY
                return True
    return False


def _write_nowhere() -> None:
    """The terminal is gone, and writing to it fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    os.close(nowhere)
