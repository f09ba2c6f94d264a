"""Wait in tests for what other threads, processes and guests do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Errors = tuple[type[Exception], ...]

_PAUSE = 0.01


def until(
    condition: Callable[[], T], what: str = "", timeout: float = 20.0, ignore: Errors = ()
) -> T:
    """Ask until the answer is true, and return that answer.

    Args:
        condition: asked every 10 ms; an AssertionError counts as not true yet.
        what: what is waited for, for the failure's text.
        timeout: seconds.
        ignore: further errors that count as not true yet.

    Raises:
        AssertionError: it was not true in time; the text has the last answer or error.
    """
    answers: list[T] = []
    for _ in _attempts(condition, answers, what, timeout, ignore):
        time.sleep(_PAUSE)
    return answers[-1]


def serves(path: Path) -> bool:
    """Whether somebody listens at a socket: its file is there a moment before, from bind on."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


async def until_async(
    condition: Callable[[], T], what: str = "", timeout: float = 20.0, ignore: Errors = ()
) -> T:
    """As `until`, while the event loop runs on."""
    answers: list[T] = []
    for _ in _attempts(condition, answers, what, timeout, ignore):
        await asyncio.sleep(_PAUSE)
    return answers[-1]


def _attempts(
    condition: Callable[[], T], answers: list[T], what: str, timeout: float, ignore: Errors
) -> Iterator[None]:
    """One yield for each attempt that failed; the answer of the last one is in `answers`."""
    deadline = time.monotonic() + timeout
    not_yet: Errors = (AssertionError, *ignore)
    while True:
        last: object
        try:
            answers[:] = [last := condition()]
        except not_yet as error:
            last = error
        else:
            if last:
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or condition}: {last!r}")
        yield
