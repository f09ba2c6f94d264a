"""The console logs of all VMs: one thread writes what their guests print to CRI logs."""

import logging
import math
import select
import time
from concurrent.futures import Future

from attrs import define, field

from virtlet.console.console_files import ConsoleFiles, LogStatus, Watch, make_console
from virtlet.console.cri_log import refusal, refuse_what_is_no_log
from virtlet.console.follower import Follower
from virtlet.errors import AlreadyExists, NotFound, Unavailable
from virtlet.threads import ANSWER_TIME, Worker

logger = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds until something that failed, such as a write to a full disk, is tried again."""


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


TICK = 0.05
"""Seconds between two looks at a file that is being written; all VMs share the beat."""
FINISH_LIMIT = 10.0
"""Seconds that `finish` waits for a log that is being written; one that cannot be is not waited
for."""
KEEP = 16 * 1024 * 1024
"""Most bytes that are kept per VM while its log cannot be written; the oldest go first."""

TURN = 4
"""Batches that one finished VM may write before the others have their turn."""


class ConsoleLogs:
    """Follows the raw console files of VMs into their logs.

    Methods may be called on any thread. What is in a raw file survives whatever happens to us,
    so a log that cannot be written now is a matter of `status` and of retries, not of an error.

    Args:
        keep: most bytes that are kept per VM while its log cannot be written; more than two
            batches.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._entries: dict[str, Followed] = {}
        self._worker = Worker("the console log writer", self._turn)
        self._watch: Watch | None = None

    def start(self) -> None:
        """Start the thread. Raises OSError when the system has no inotify instance left."""
        self._watch = Watch()
        self._worker.start()

    def stop(self) -> None:
        """Stop where we are; the guests print on, and `add` goes on from here after a restart."""
        self._worker.stop()
        for entry in self._entries.values():
            entry.follower.close()
            entry.answer()
        self._entries.clear()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def prepare(self, files: ConsoleFiles, *, uid: int = -1, gid: int = -1) -> None:
        """Make the console of an emulator that is about to start, and follow it.

        What an earlier start of the same VM printed is written to the log first. `remove` is
        the inverse; repeating it is safe as long as no emulator has been started.

        Args:
            files: whose; the directory exists.
            uid: the emulator's user; -1 where the hypervisor changes the owner itself.
            gid: the emulator's group, likewise.

        Raises:
            FailedPrecondition: what is at the log's path, or above it, can be no log.
            ResourceExhausted: the disk is full.
            Unavailable: the files cannot be made.
        """
        self._worker.call(lambda: self._prepare(files, uid, gid))

    def add(self, files: ConsoleFiles) -> None:
        """Follow a console from where its log ends; the raw file may appear later. Idempotent.

        Raises:
            AlreadyExists: the VM is followed with other files.
        """
        self._worker.call(lambda: self._add(files))

    def reopen(self, vm_id: str) -> None:
        """Write on to the file now at the log's path, made if missing; for ReopenContainerLog.

        Raises:
            NotFound: the VM is not followed.
            ResourceExhausted: the disk is full.
            Unavailable: the log cannot be opened. In both cases the old file is written on.
        """
        self._worker.call(lambda: self._reopen(vm_id))

    def tell(self, vm_id: str, text: str) -> None:
        """Write a line of the manager's own to the log of a VM that is followed.

        Raises:
            NotFound: the VM is not followed.
            ResourceExhausted: the disk is full.
            Unavailable: the log cannot be written.
        """
        self._worker.call(lambda: self._tell(vm_id, text))

    def finish(self, files: ConsoleFiles, limit: float = FINISH_LIMIT) -> LogStatus:
        """Complete the log of a VM that prints no more and stop following it. Idempotent.

        Returns:
            A status that is not complete when the log cannot be written, at once, or was still
            being written after `limit` seconds. Writing it goes on, or is retried, until it is.

        Raises:
            Unavailable: the writer is not running, or its disk has stalled.
        """
        finish = self._worker.call(lambda: self._finish(files, limit))
        try:
            return finish.done.result(limit + ANSWER_TIME)
        except TimeoutError as error:
            raise Unavailable(
                f"the console log of VM {files.vm_id} is not complete; is its disk stalled?"
            ) from error

    def remove(self, files: ConsoleFiles) -> None:
        """Stop following a VM and delete its console, but not its log. Idempotent."""
        self._worker.call(lambda: self._remove(files))

    def status(self) -> tuple[LogStatus, ...]:
        """How the logs stand that are followed; never waits."""
        return tuple(entry.status() for entry in list(self._entries.values()))

    def _prepare(self, files: ConsoleFiles, uid: int, gid: int) -> None:
        refuse_what_is_no_log(files)
        entry = self._drop(files.vm_id)
        follower = Follower(files)
        if entry is not None:
            entry.follower.close()
            entry.answer()
        try:
            if files.raw.exists():
                follower.open()
                follower.finish()
            make_console(files, uid=uid, gid=gid)
        except OSError as error:
            raise refusal(f"cannot make the console of VM {files.vm_id}", error) from error
        finally:
            follower.close()
        self._add(files)

    def _add(self, files: ConsoleFiles) -> None:
        known = self._entries.get(files.vm_id)
        if known is not None and known.files != files:
            raise AlreadyExists(
                f"the console of VM {files.vm_id} is followed already, to {known.files.log}"
            )
        entry = self._entries.setdefault(files.vm_id, Followed(Follower(files), self._keep))
        entry.ended = False
        self._advance(entry)

    def _tell(self, vm_id: str, text: str) -> None:
        entry = self._opened(vm_id)
        try:
            entry.follower.tell(text)
        except OSError as error:
            entry.failed(error)
            raise refusal(f"cannot write to the log of VM {vm_id}", error) from error

    def _opened(self, vm_id: str) -> Followed:
        """The entry of a VM, its log open."""
        entry = self._entries.get(vm_id)
        if entry is None:
            raise NotFound(f"no console log of VM {vm_id} is being written")
        if not entry.opened:
            self._advance(entry)
            if not entry.opened:
                raise Unavailable(f"cannot open the log of VM {vm_id}: {entry.problem}")
        if entry.complete:
            raise NotFound(f"the console log of VM {vm_id} is complete")
        return entry

    def _reopen(self, vm_id: str) -> None:
        entry = self._opened(vm_id)
        try:
            entry.follower.reopen()
        except OSError as error:
            raise refusal(f"cannot reopen the log of VM {vm_id}", error) from error

    def _finish(self, files: ConsoleFiles, limit: float) -> Finish:
        finish = Finish(time.monotonic() + limit)
        entry = self._entries.get(files.vm_id)
        if entry is None:
            if not files.raw.exists():
                finish.done.set_result(LogStatus(files.vm_id, 0))
                return finish
            entry = self._entries[files.vm_id] = Followed(Follower(files), self._keep)
        entry.ended = True
        entry.finishes.append(finish)
        self._advance(entry)
        return finish

    def _remove(self, files: ConsoleFiles) -> None:
        entry = self._drop(files.vm_id)
        if entry is not None:
            entry.tell_unwritten()
            entry.follower.close()
            entry.answer()
        for path in (files.state, files.raw, files.keyboard):
            path.unlink(missing_ok=True)

    def _drop(self, vm_id: str) -> Followed | None:
        assert self._watch is not None
        self._watch.forget(vm_id)
        return self._entries.pop(vm_id, None)

    def _turn(self) -> float:
        """Write what it is time to write; returns when to look again."""
        assert self._watch is not None
        self._worker.files = {self._watch.fileno(): select.POLLIN}
        for vm_id in self._watch.fired():
            if vm_id in self._entries:
                self._entries[vm_id].wake_at = 0.0
        now = time.monotonic()
        for entry in list(self._entries.values()):
            if entry.wake_at <= now:
                self._advance(entry)
        wake_at = min((entry.wake_at for entry in self._entries.values()), default=math.inf)
        return wake_at - time.monotonic()

    def _advance(self, entry: Followed) -> None:
        """Write a batch of one VM, and say when to look at it again. Never raises."""
        try:
            if not entry.opened:
                entry.follower.open()
                entry.opened = True
            if entry.ended:
                entry.wake_at = self._complete(entry)
            else:
                entry.wake_at = self._write(entry)
        except OSError as error:
            entry.failed(error)
        except Exception as error:
            logger.exception("console log of VM %s: unexpected error", entry.files.vm_id)
            entry.failed(error)
        else:
            entry.succeeded()

    def _complete(self, entry: Followed) -> float:
        """Write some batches of a VM that prints no more; returns when to go on."""
        if any(not entry.follower.step(flush=True) for _ in range(TURN)):
            entry.follower.finish()
            entry.complete = True
            self._drop(entry.files.vm_id)
        return 0.0

    def _write(self, entry: Followed) -> float:
        """Write a batch; returns when to look again."""
        follower = entry.follower
        before = follower.seen
        more = follower.step()
        if more:
            return 0.0
        if follower.seen != before:
            return (time.monotonic() // TICK + 1) * TICK
        return min(self._arm(entry), follower.due or math.inf)

    def _arm(self, entry: Followed) -> float:
        """Have the watch tell of the next output of a quiet guest; returns when to look anyway."""
        assert self._watch is not None
        raw, files = entry.follower.raw, entry.files
        entry.watch_note = ""
        try:
            if raw is None:
                self._watch.arm_directory(files.vm_id, files.raw.parent)
                return 0.0 if files.raw.exists() else math.inf
            self._watch.arm_file(files.vm_id, raw.descriptor)
            return 0.0 if raw.size() != entry.follower.seen else math.inf
        except OSError as error:
            entry.watch_note = f"looked at every {RETRY:g} s, as no watch can be set: {error}"
            return time.monotonic() + RETRY
