"""One VM's log: takes raw bytes to log lines in batches, each exactly once.

A batch is appended to the log, then a checkpoint is saved, then blocks of the raw file are
given back. Whatever interrupts this, a killed manager or a full disk, the way on is `open`: it
reads the log behind the last checkpoint and compares it with the raw file.

When a log cannot be written for long, `give_up` makes a gap in what the raw file keeps. It is
noted in the checkpoint before its blocks go, and told in the log when its turn comes there. A
batch before it is kept, as that much may be in the log already.
"""

import contextlib
import errno
import logging
import time

from attrs import evolve

from virtlet.console.console_files import Checkpoint, CheckpointFile, ConsoleFiles, RawFile
from virtlet.console.cri_log import (
    HEADER_SIZE,
    CriLog,
    Decoded,
    NoLog,
    decode,
    encode,
    encode_loss,
    encode_notice,
)

BATCH = 64 * 1024
"""Most raw bytes between two checkpoints."""
IDLE = 0.2
"""Seconds without output after which an unfinished line, such as a prompt, goes to the log."""
PATIENCE = 1.0
"""Seconds after which it goes there although it keeps growing."""

_LONGEST_TAIL = BATCH * (HEADER_SIZE + 2)
"""Most log bytes behind a checkpoint: a batch of empty lines, each with its header."""

logger = logging.getLogger(__name__)


class Follower:
    """Follows one raw file into one log. Not thread-safe; every method may raise OSError.

    After an OSError from any but `reopen` only `open` and `close` are of use.
    """

    def __init__(self, files: ConsoleFiles) -> None:
        self.files = files
        self.raw: RawFile | None = None
        self._state: CheckpointFile | None = None
        self._log: CriLog | NoLog | None = None
        self._checkpoint = Checkpoint()
        self.seen = 0  # size of the raw file when last looked at, in bytes
        self._examined = 0  # up to where it was read to find line ends
        self._grown_at = 0.0
        self._waiting_since = 0.0

    def open(self) -> None:
        """Open the files and go on where the log ends, whatever happened before."""
        self.close()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._state = CheckpointFile(self.files.state)
            saved = self._state.latest
            self.raw = self._open_raw()
            self._checkpoint = self._start(saved)
            self._log = self._recover_log(saved)
            self._save()
            undo.pop_all()

    def step(self, *, flush: bool = False) -> bool:
        """Write one batch, if there is one. Returns whether there is more to write at once.

        Args:
            flush: write an unfinished line too, even one that has only begun.
        """
        if self.raw is None and not self._raw_appeared():
            return False
        assert self.raw is not None
        now = time.monotonic()
        size, offset = self._look(now), self._checkpoint.raw_offset
        if self._checkpoint.gap and not self._checkpoint.before_gap:
            self._tell_gap()
            return self._checkpoint.raw_offset < size
        if self._passes_hole(offset, size):
            return True
        end = offset + self._checkpoint.before_gap if self._checkpoint.gap else size
        flush = flush or end < size or (self.due is not None and now >= self.due)
        if size == offset or (size == self._examined and not flush):
            return False
        data = self.raw.read(offset, min(BATCH, end - offset))
        self._examined = offset + len(data)
        batch = encode(data, time.time_ns(), flush=flush and self._examined == end)
        if batch.taken:
            self._append(batch.text)
            self._pass(self._checkpoint.written(batch.taken))
            self._waiting_since = now
        return self._examined < size

    def _passes_hole(self, offset: int, size: int) -> bool:
        """Take what was never written for lost; no emulator leaves that, unless it is hostile.

        Otherwise a file that is large in name alone would fill the disk with lines of zeros.
        """
        assert self.raw is not None
        if self._checkpoint.gap or size - offset <= BATCH:
            return False
        hole = self.raw.first_data(offset) - offset
        if hole > BATCH:
            self._checkpoint = evolve(self._checkpoint, before_gap=0, gap=hole)
            self._save()
        return hole > BATCH

    def tell(self, text: str) -> None:
        """Write a line of the manager's own to the log; a kill may lose or repeat it."""
        self._append(encode_notice(text, time.time_ns()))
        self._save()

    @property
    def due(self) -> float | None:
        """When an unfinished line has to be written (monotonic seconds); None if there is none."""
        if self.raw is None or self._checkpoint.raw_offset >= self.seen:
            return None
        return min(self._grown_at + IDLE, self._waiting_since + PATIENCE)

    @property
    def pending(self) -> int:
        """Raw bytes that are kept and not in the log now. For other threads, too, like `lost`."""
        try:
            size = self.files.raw.stat().st_size
        except OSError:
            return 0
        checkpoint = self._checkpoint
        return max(0, size - checkpoint.raw_offset - checkpoint.gap)

    @property
    def lost(self) -> int:
        """Raw bytes given up that the log does not tell of yet."""
        return self._checkpoint.gap

    @property
    def note(self) -> str:
        """See LogStatus."""
        return self.raw.note if self.raw is not None else ""

    def reopen(self) -> None:
        """Write on to the file that is now at the log's path, or to the old one if that fails."""
        if self.files.log is None:
            return
        assert self._log is not None
        fresh = CriLog.at(self.files.log, self.files.log_directory)
        if fresh.inode == self._log.inode:
            fresh.close()
            return
        # Nothing may stand in the new log before the checkpoint names it.
        try:
            self._save(fresh)
        except OSError:
            fresh.close()
            raise
        self._log.close()
        self._log = fresh

    def finish(self) -> None:
        """Write everything, give all blocks back and close. The guest prints no more.

        What somebody writes there all the same, meanwhile, is left.
        """
        end = self.raw.size() if self.raw is not None else 0
        while self.step(flush=True) and self._checkpoint.raw_offset < end:
            pass
        if self.raw is not None:
            self.raw.release(self._checkpoint.raw_offset, everything=True)
        self.close()

    def give_up(self, keep: int) -> None:
        """Give up the oldest raw bytes that are not in the log, but for some; closed afterwards.

        Args:
            keep: how many bytes to keep; more than two batches.

        Raises:
            OSError: this cannot be noted, or the filesystem cannot take blocks back; nothing is
                given up then.
        """
        self.close()
        with contextlib.closing(self):
            self._state = CheckpointFile(self.files.state)
            saved = self._state.latest
            self.raw = self._open_raw()
            if self.raw is None:
                return
            start = self._start(saved)
            before = start.before_gap if start.gap else BATCH
            gap = self.raw.size() - start.raw_offset - keep
            if gap <= start.gap:
                return
            if not self.raw.can_punch():
                raise OSError(errno.EOPNOTSUPP, self.raw.note)
            log = saved or start
            checkpoint = evolve(
                start, before_gap=before, gap=gap, log_inode=log.log_inode, log_size=log.log_size
            )
            self._state.save(checkpoint)
            self.raw.give_up(start.raw_offset + before, checkpoint.reach)
            self._checkpoint = checkpoint

    def close(self) -> None:
        """Close the files; the state file last, as it holds the lock."""
        for file in (self.raw, self._log, self._state):
            if file is not None:
                file.close()
        self.raw = self._log = self._state = None

    def _look(self, now: float) -> int:
        """Learn of the raw file's size. It never shrinks by our doing or the emulator's."""
        assert self.raw is not None
        size = self.raw.size()
        if size < self._checkpoint.reach:
            logger.warning(
                "raw console file %s was truncated by someone; going on at its new start",
                self.files.raw,
            )
            self._checkpoint = evolve(self._checkpoint, raw_offset=0, before_gap=0, gap=0)
            self._examined = 0
        if size != self.seen:
            if self.seen <= self._checkpoint.raw_offset:
                self._waiting_since = now
            self._grown_at = now
            self.seen = size
        return size

    def _tell_gap(self) -> None:
        """Write how much was lost, in a batch of its own."""
        count = self._checkpoint.gap
        self._append(encode_loss(count, time.time_ns()))
        self._pass(self._checkpoint.told(count))
        logger.warning(
            "console log of VM %s: %d bytes of console output were lost, as it could not be "
            "written; it says so",
            self.files.vm_id,
            count,
        )

    def _append(self, text: bytes) -> None:
        assert self._log is not None
        if self._log.is_gone():
            logger.warning("console log %s was deleted; a new one is begun", self.files.log)
            self.reopen()
        self._log.append(text)

    def _pass(self, checkpoint: Checkpoint) -> None:
        """Go on behind what the log holds now."""
        assert self.raw is not None
        self._checkpoint = checkpoint
        self._save()
        self.raw.release(checkpoint.raw_offset)

    def _save(self, log: CriLog | NoLog | None = None) -> None:
        log = log or self._log
        assert log is not None
        assert self._state is not None
        checkpoint = evolve(self._checkpoint, log_inode=log.inode, log_size=log.size)
        self._state.save(checkpoint)
        self._checkpoint = checkpoint

    def _open_raw(self) -> RawFile | None:
        try:
            return RawFile(self.files.raw)
        except FileNotFoundError:
            return None

    def _raw_appeared(self) -> bool:
        self.raw = self._open_raw()
        if self.raw is None:
            return False
        self._checkpoint = self._start(self._checkpoint)
        self._save()
        return True

    def _start(self, saved: Checkpoint | None) -> Checkpoint:
        """Where to begin in the raw file, before the log has been looked at."""
        self.seen = self._examined = 0
        self._grown_at = self._waiting_since = time.monotonic()
        if self.raw is None:
            return Checkpoint()
        if saved is None:
            offset = self.raw.first_data(0)
            hole, length = self.raw.first_hole(offset)
            if offset or length:
                logger.warning(
                    "%s holds no sound checkpoint: the log of VM %s may repeat what it has",
                    self.files.state,
                    self.files.vm_id,
                )
            before = hole - offset if length else 0
            return Checkpoint(self.raw.inode, offset, before_gap=before, gap=length)
        if saved.raw_inode != self.raw.inode:
            return Checkpoint(self.raw.inode)
        if saved.gap:  # a kill may have come before its blocks went
            self.raw.give_up(saved.raw_offset + saved.before_gap, saved.reach)
        return evolve(saved, log_inode=0, log_size=0)

    def _recover_log(self, saved: Checkpoint | None) -> CriLog | NoLog:
        """Open the log, first counting what reached the one that was written last."""
        if self.files.log is None:
            return NoLog()
        path, below = self.files.log, self.files.log_directory
        last = CriLog.of(saved, path, below) if saved is not None else None
        if saved is not None and last is not None:
            with contextlib.closing(last):
                self._count_in(last, saved)
        return CriLog.at(path, below)

    def _count_in(self, log: CriLog, saved: Checkpoint) -> None:
        """Count the raw bytes behind the checkpoint in a log, and cut a torn line off its end."""
        found = self._decoded_tail(log, saved.log_size)
        if found is None:
            logger.warning("console log %s was written to by someone else", self.files.log)
            return
        log.cut(saved.log_size + found.whole)
        if self.raw is None or self.raw.inode != saved.raw_inode:
            return
        checkpoint = self._checkpoint
        if found.lost and not found.payload and not checkpoint.before_gap:
            known = found.lost <= checkpoint.gap
        else:
            kept = self.raw.read(checkpoint.raw_offset, len(found.payload))
            known = not found.lost and kept == found.payload
        if not known:
            logger.warning("console log %s holds lines that VM never printed", self.files.log)
        elif found.lost:
            self._checkpoint = checkpoint.told(found.lost)
        else:
            self._checkpoint = checkpoint.written(len(found.payload))

    def _decoded_tail(self, log: CriLog, start: int) -> Decoded | None:
        if log.size - start > _LONGEST_TAIL:
            return None
        try:
            return decode(log.tail(start))
        except ValueError:
            return None
