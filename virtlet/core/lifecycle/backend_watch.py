"""Notices when a program that serves a VM ends before it."""

import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from attrs import define

from virtlet.host.processes import ended
from virtlet.threads import Worker

SOON = 5.0
"""Seconds within which the end of a program and that of its VM are one."""


@define(eq=False)
class Running:
    """A program that serves a VM, and how it ended."""

    vm_id: str
    name: str
    loss: str
    """What its end means for the VM's owner."""
    pidfd: int | None
    """None once it has ended."""
    words: BinaryIO | None = None
    """What it prints."""
    how: str = "while no manager ran"
    due: float = 0.0
    """When it counts as lost, on the monotonic clock."""

    def said(self) -> str:
        """The end of what it has printed."""
        if self.words is None:
            return ""
        size = self.words.seek(0, os.SEEK_CUR)
        return os.pread(self.words.fileno(), size, 0).decode(errors="replace").strip()[-500:]


class BackendWatch:
    """Watches all programs on one thread, from the first one on.

    Args:
        soon: seconds that an ended one has to be forgotten in, with its VM, before it counts as
            lost.
    """

    def __init__(self, soon: float = SOON) -> None:
        self._soon = soon
        self._lock = threading.Lock()
        self._watched: dict[Running, Callable[[Running], None]] = {}
        self._worker = Worker("backend-watch", self._watch)

    def add(self, running: Running, lost: Callable[[Running], None]) -> None:
        """Call `lost`, once, when a program has ended and is not forgotten soon after."""
        running.due = time.monotonic() + self._soon
        with self._lock:
            self._watched[running] = lost
        self._worker.start()
        self._worker.wake()

    def forget(self, vm_id: str) -> dict[str, int]:
        """Watch those of a VM no more; it is about to end, or has ended.

        Returns:
            Name and pidfd, which is the caller's, of each that still runs.
        """
        with self._lock:
            forgotten = [each for each in self._watched if each.vm_id == vm_id]
            for running in forgotten:
                del self._watched[running]
                if running.words is not None:
                    running.words.close()
        return {each.name: each.pidfd for each in forgotten if each.pidfd is not None}

    def words(self, vm_id: str) -> str:
        """How those programs of a VM ended that have ended, and their last words."""
        with self._lock:
            for running in self._watched:
                self._notice(running)
            gone = [each for each in self._watched if each.vm_id == vm_id and each.pidfd is None]
            return "; ".join(f"{each.name} ended ({each.how}): {each.said()}" for each in gone)

    def close(self) -> None:
        """Watch no more; the programs go on."""
        self._worker.stop()
        with self._lock:
            for running in self._watched:
                _close(running)
            self._watched.clear()

    def _watch(self) -> float:
        now = time.monotonic()
        with self._lock:
            for running in self._watched:
                self._notice(running)
            lost = {r: c for r, c in self._watched.items() if r.pidfd is None and r.due <= now}
            for running in lost:
                del self._watched[running]
            files = [r.pidfd for r in self._watched if r.pidfd is not None]
            dues = [r.due for r in self._watched if r.pidfd is None]
        for running, tell in lost.items():
            tell(running)
            _close(running)
        self._worker.files = dict.fromkeys(files, select.POLLIN)
        return max(min(dues, default=math.inf) - time.monotonic(), 0.0)

    def _notice(self, running: Running) -> None:
        if running.pidfd is None or not ended(running.pidfd):
            return
        running.how = _how(running.pidfd)
        running.due = time.monotonic() + self._soon
        os.close(running.pidfd)
        running.pidfd = None


def _how(pidfd: int) -> str:
    """How a process ended, which is reaped; only its parent knows."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        result = None
    if result is None:
        return "it is not known how"
    word = "status" if result.si_code == os.CLD_EXITED else "signal"
    return f"{word} {result.si_status}"


def _close(running: Running) -> None:
    if running.pidfd is not None:
        os.close(running.pidfd)
    if running.words is not None:
        running.words.close()
