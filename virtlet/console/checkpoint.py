"""The state file: how far a raw file has been written to which log.

Two slots in one small file, written in turn and in place. A slot that was torn fails its
checksum and the other one, a batch older, counts; its batch is then found in the log itself.
Replacing the file by rename instead would make ext4 start writing the blocks out every time.
"""

import fcntl
import os
import zlib
from pathlib import Path

from attrs import astuple, evolve, frozen

_SLOT = 128
_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@frozen
class Checkpoint:
    """At some moment, the first `raw_offset` raw bytes were in logs, the last of this size.

    Files are told apart by inode alone: device numbers may change with a reboot. State files of
    earlier versions have no gap.
    """

    raw_inode: int = 0
    """0 when there was no raw file."""
    raw_offset: int = 0
    log_inode: int = 0
    """0 when there is no log."""
    log_size: int = 0
    before_gap: int = 0
    """Raw bytes from `raw_offset` on that are kept; those of the gap were behind them."""
    gap: int = 0
    """Raw bytes given up that the log does not tell of yet."""

    @property
    def reach(self) -> int:
        """Size of the raw file that this needs at least."""
        return self.raw_offset + self.before_gap + self.gap

    def written(self, count: int) -> "Checkpoint":
        """The log has more bytes, all of them before the gap if there is one."""
        before_gap = self.before_gap - count if self.gap else 0
        return evolve(self, raw_offset=self.raw_offset + count, before_gap=before_gap)

    def told(self, count: int) -> "Checkpoint":
        """The log says that bytes of the gap, which comes next, were lost."""
        return evolve(self, raw_offset=self.raw_offset + count, gap=self.gap - count)


class StateFile:
    """A state file, held open and locked: one process at a time writes a VM's log.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened or created.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, _CREATE, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            slots = [_parse(self._read(slot)) for slot in (0, 1)]
        except BaseException:
            os.close(self._descriptor)
            raise
        self._sequence = 0
        self._latest: Checkpoint | None = None
        for slot in slots:
            if slot is not None and slot[0] > self._sequence:
                self._sequence, self._latest = slot

    @property
    def latest(self) -> Checkpoint | None:
        """The last checkpoint saved, or None when there is no sound one."""
        return self._latest

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint over the older slot. Raises OSError."""
        sequence = self._sequence + 1
        written = os.pwrite(self._descriptor, _format(sequence, checkpoint), sequence % 2 * _SLOT)
        if written != _SLOT:
            raise OSError(f"only {written} of {_SLOT} bytes of a console checkpoint were written")
        self._sequence, self._latest = sequence, checkpoint

    def close(self) -> None:
        """Close the file, which unlocks it."""
        os.close(self._descriptor)

    def _read(self, slot: int) -> bytes:
        return os.pread(self._descriptor, _SLOT, slot * _SLOT)


def _format(sequence: int, checkpoint: Checkpoint) -> bytes:
    body = " ".join(str(number) for number in (sequence, *astuple(checkpoint)))
    line = f"{zlib.crc32(body.encode()):08x} {body}"
    return f"{line:<{_SLOT - 1}}\n".encode()


def _parse(slot: bytes) -> tuple[int, Checkpoint] | None:
    checksum, _, body = slot.strip().partition(b" ")
    if len(slot) != _SLOT or checksum != b"%08x" % zlib.crc32(body):
        return None
    sequence, *numbers = (int(number) for number in body.split())
    return sequence, Checkpoint(*numbers)
