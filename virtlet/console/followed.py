"""A VM whose console is followed: what is known of it between two turns of the writer."""

import logging
import math
import time
from concurrent.futures import Future

from attrs import define, field

from virtlet.console.files import ConsoleFiles, LogStatus
from virtlet.console.follower import Follower

RETRY = 1.0
"""Seconds until something that failed, such as a write to a full disk, is tried again."""

logger = logging.getLogger(__name__)


@define
class Finish:
    """Someone who waits for a log to be complete."""

    deadline: float
    done: Future[LogStatus] = field(factory=Future)


@define
class Followed:
    """A VM that is followed."""

    follower: Follower
    keep: int
    """Most bytes that are kept while the log cannot be written."""
    opened: bool = False
    wake_at: float = 0.0
    """When to look at it next (monotonic seconds) if no watch fires before."""
    problem: str = ""
    watch_note: str = ""
    growth_note: str = ""
    failed_once: bool = False
    """Whether it was ever not to be written; what that first time waits is not given up yet."""
    losing: bool = False
    """Whether bytes were given up since the log could be written last."""
    ended: bool = False
    """Whether the guest prints no more."""
    complete: bool = False
    """Whether it is followed no more, as everything is written."""
    finishes: list[Finish] = field(factory=list)

    @property
    def files(self) -> ConsoleFiles:
        """Whose console."""
        return self.follower.files

    def status(self) -> LogStatus:
        """How the log stands."""
        follower = self.follower
        notes = (follower.note, self.watch_note, self.growth_note)
        note = "; ".join(note for note in notes if note)
        return LogStatus(self.files.vm_id, follower.pending, self.problem, note, follower.lost)

    def answer(self, before: float = math.inf) -> None:
        """Tell those who wait for the log how it stands, if their time is up before."""
        for finish in list(self.finishes):
            if finish.deadline <= before:
                self.finishes.remove(finish)
                finish.done.set_result(self.status())

    def succeeded(self) -> None:
        """Note that the log can be written."""
        if self.problem:
            logger.info("console log of VM %s is written again", self.files.vm_id)
        self.problem = self.growth_note = ""
        self.losing = False
        self.answer(before=math.inf if self.complete else time.monotonic())

    def failed(self, error: Exception) -> None:
        """Note a failure; the next attempt goes through what a restart goes through."""
        self.follower.close()
        self.opened = False
        self.wake_at = time.monotonic() + RETRY
        problem = (
            f"cannot write {self.files.log}: {error}; it is retried, and the last "
            f"{self.keep >> 10} KiB of output are kept"
        )
        if problem != self.problem:
            logger.warning("console log of VM %s: %s", self.files.vm_id, problem)
        if self.failed_once:
            self._limit()
        self.failed_once = True
        self.problem = problem
        self.answer()

    def tell_unwritten(self) -> None:
        """Say what of its output nobody will write, as it is about to be removed."""
        status = self.status()
        if self.files.log is not None and not status.complete:
            logger.warning(
                "console log of VM %s ends without the last %d bytes of console output: %s",
                status.vm_id,
                status.pending + status.lost,
                status.problem or "the VM was removed before they were written",
            )

    def _limit(self) -> None:
        """Keep no more than is allowed of what cannot be written; says so once. Never raises."""
        if self.follower.pending <= self.keep:
            return
        try:
            self.follower.give_up(self.keep)
        except Exception as error:
            note = f"the raw console file grows, as nothing of it can be given up: {error}"
            if note != self.growth_note:
                logger.warning("console log of VM %s: %s", self.files.vm_id, note)
            self.growth_note = note
            return
        self.growth_note = ""
        if self.follower.lost and not self.losing:
            logger.warning(
                "console log of VM %s: the oldest console output is being given up, %d bytes so "
                "far; how many in the end will be told when the log can be written",
                self.files.vm_id,
                self.follower.lost,
            )
            self.losing = True
