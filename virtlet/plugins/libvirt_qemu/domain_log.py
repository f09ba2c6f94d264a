"""The emulator's last words: from libvirt's message or the domain's log."""

import contextlib
import os
import re
from pathlib import Path

_TAIL = 8192
"""Bytes of the log that are looked at."""
_LINES = 4
_LONGEST = 600
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d+(?:Z|\+0000:)\s*")
_SIGNAL = re.compile(r"\bterminating on signal \d+(?: from pid (\d+) \((.*)\))?")
"""QEMU's word before it ends by a signal that it could catch."""
_DAEMONS = ("libvirtd", "virtqemud")
_NOISE = re.compile(r"^(starting up libvirt|shutting down|Domain id=\d+ is tainted|char device )")


def why(message: str, log: Path) -> str:
    """What an operator should read when an emulator did not start.

    Args:
        message: libvirt's own; often ends with the emulator's lines.
        log: the domain's log.

    Returns:
        A bounded text in one line. Of the command line, which holds the launch token, nothing
        is ever quoted.
    """
    head, _, quoted = message.partition("\n")
    before, colon, first = head.rpartition("): ")
    lines = _words([first, *quoted.splitlines()] if colon else quoted.splitlines())
    if not lines:
        with contextlib.suppress(OSError):
            lines = _words(_tail(log))
    text = (before + ")") if colon else head
    said = "; ".join(lines[-_LINES:])
    return f"{text.strip()[:_LONGEST]}: {said}"[:_LONGEST] if said else text.strip()[:_LONGEST]


def ended_by_signal(log: Path) -> bool:
    """Whether the last run of the emulator was told to end by a signal that is not libvirt's.

    libvirt, which may be in this process, ends so what it gives up for a reason of its own.
    """
    with contextlib.suppress(OSError):
        for line in _words(_tail(log)):
            if said := _SIGNAL.search(line):
                pid, program = said.group(1), said.group(2) or ""
                return pid != str(os.getpid()) and Path(program).name not in _DAEMONS
    return False


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        return file.read().decode(errors="replace").splitlines()


def _words(lines: list[str]) -> list[str]:
    """Lines that say something, since the last start."""
    said: list[str] = []
    for line in lines:
        text = _STAMP.sub("", line).strip()
        if text.startswith("starting up libvirt"):
            said.clear()
        elif (
            text and not text.endswith("\\") and not text.startswith("-") and not _NOISE.match(text)
        ):
            said.append(text)
    return said
