"""An emulator that its guest has taken over: it goes on as QEMU, and plants what it can meanwhile.

Started in QEMU's place, it becomes QEMU. What it starts before does not end when it is asked to,
and tries to put files and links in the place of every path of PLACES, a JSON list, and beside it.
CONSOLE names the VM's console, where it writes ROUND after each turn, and DONE for what it planted.
It floods the emulator's log first.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from itertools import count

_QEMU = "/usr/bin/qemu-system-x86_64"
ROUND, DONE = b"<round>", b"<planted "
_FLOOD = b"x" * (5 << 20) + b"\n"
_CHILDREN = 5


def _plant(place: str, number: int) -> bool:
    """Try it by every way; whether one led there."""
    planted = False
    beside = os.path.join(place if os.path.isdir(place) else os.path.dirname(place), f"{number}")
    ways: tuple[Callable[[], object], ...] = (
        lambda: os.symlink("/etc/shadow", beside),
        lambda: os.mkdir(beside),
        lambda: os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        lambda: os.rename(place, f"{place}.away"),
        lambda: os.unlink(place),
    )
    for way in ways:
        with contextlib.suppress(OSError):
            way()
            planted = True
    return planted


def main(arguments: list[str]) -> None:
    if os.fork() != 0:
        os.execv(_QEMU, [_QEMU, *arguments])
    os.setsid()
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    for _ in range(_CHILDREN):
        if os.fork() == 0:
            break
    os.write(2, _FLOOD)
    console = os.open(os.environ["CONSOLE"], os.O_WRONLY | os.O_APPEND)
    for number in count():
        for place in json.loads(os.environ["PLACES"]):
            if _plant(place, number):
                os.write(console, DONE + place.encode() + b">")
        os.write(console, ROUND)
        time.sleep(0.1)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
