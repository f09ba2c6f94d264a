"""The files of a VM's console on the node, and waiting for them to change.

The emulator reads what is typed from a FIFO and writes what the guest prints to an ordinary file,
the raw file. So it never waits for us, dead or alive: a write to an ordinary file neither blocks
nor comes back half done. docs/decisions/0004-console-is-a-file.md has what else was tried.

The emulator writes at the end of the raw file; we read, and give the blocks behind us back to the
filesystem by punching holes. The file keeps its apparent size. It is never truncated: the emulator
remembers its own offset, and a truncation could take bytes that nobody has read.

How far the raw file has been written to which log is in the state file: two slots, written in turn
and in place. A slot that was torn fails its checksum and the other one, a batch older, counts; its
batch is then found in the log itself. Replacing the file by rename instead would make ext4 start
writing the blocks out every time.

A watch fires once and is gone. Its owner looks at the file at its own pace from then on, and arms
a new watch when the file has been quiet. A guest that prints byte by byte thus costs one
notification per burst, not one per byte, for itself and for us.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import zlib
from collections import defaultdict
from pathlib import Path

from attrs import astuple, evolve, frozen
from inotify_simple import INotify, flags  # type: ignore[import-untyped]

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
_BLOCK = 4096
_STEP = 256 * 1024
"""Bytes read since the last hole before the next is punched."""
_FAR = 1024 * 1024 * 1024
"""Bytes behind the end of the file where nothing will be written soon."""
MARGIN = 256 * 1024
"""Bytes behind the reader that stay, for those who watch the console live."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@frozen
class ConsoleFiles:
    """The files of one VM's console."""

    vm_id: str
    stem: Path
    """The three files below are named after it."""
    log: Path | None
    """The CRI log that the kubelet reads; None drops what the guest prints."""
    log_directory: Path | None = None
    """The pod's log directory, which the log is below. From there on no link is followed. By
    default the directory that the log is in."""

    @property
    def raw(self) -> Path:
        """Every byte the guest printed; what is in the log already is punched out as holes."""
        return self.stem.with_name(f"{self.stem.name}.out")

    @property
    def keyboard(self) -> Path:
        """FIFO whose bytes the guest reads as typed."""
        return self.stem.with_name(f"{self.stem.name}.in")

    @property
    def state(self) -> Path:
        """How far the raw file has been written to the log; ours alone."""
        return self.stem.with_name(f"{self.stem.name}.state")


@frozen
class LogStatus:
    """How the log of one VM stands."""

    vm_id: str
    pending: int
    """Bytes the guest printed that are kept and not in the log yet."""
    problem: str = ""
    """Why nothing can be written now (it is retried), empty when all is well."""
    note: str = ""
    """What the operator should know although the log is complete, such as a raw file that grows."""
    lost: int = 0
    """Bytes that were given up, as the log could not be written; the log does not say so yet."""

    @property
    def complete(self) -> bool:
        """Whether every byte is in the log, or told there as lost."""
        return self.pending == 0 and self.lost == 0 and not self.problem


def make_console(files: ConsoleFiles, *, uid: int = -1, gid: int = -1) -> None:
    """Make the FIFO and a new raw file for an emulator that is about to start.

    The raw file replaces an older one by rename, so that its inode differs and the offset that
    was reached in the old one is not taken for one in the new.

    Args:
        files: whose; the directory exists and is not writable for the emulator.
        uid: the emulator's user; -1 leaves the owner as it is.
        gid: the emulator's group, likewise.
    """
    files.keyboard.unlink(missing_ok=True)
    os.mkfifo(files.keyboard, 0o600)
    os.chown(files.keyboard, uid, gid)
    fresh = files.raw.with_name(f".{files.raw.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)
    fresh.replace(files.raw)


class RawFile:
    """A raw file, open for reading and for punching holes.

    Raises:
        OSError: it cannot be opened, or is not an ordinary file with one name. It belongs to
            the emulator's user, so a link to a file of somebody else's is possible.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor = os.open(path, flags)
        self._released = 0
        self.note = ""
        """Why the file cannot be kept small, if so."""
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self.close()
            raise OSError(errno.EINVAL, "not an ordinary file with one name", str(path))
        self.inode = status.st_ino

    def size(self) -> int:
        """Bytes that were ever written."""
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Read up to `count` bytes."""
        return os.pread(self.descriptor, count, offset)

    def first_data(self, offset: int) -> int:
        """The first offset from this one on that is not in a hole; the size if there is none."""
        try:
            return os.lseek(self.descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return max(offset, self.size())

    def first_hole(self, offset: int) -> tuple[int, int]:
        """Start and length of the first hole between an offset and data; the size and 0 if none."""
        size = self.size()
        if offset >= size:
            return size, 0
        start = os.lseek(self.descriptor, offset, os.SEEK_HOLE)
        return (start, self.first_data(start) - start) if start < size else (size, 0)

    def can_punch(self) -> bool:
        """Whether blocks can be given back here; tried where no data is."""
        return self._punch(self.size() + _FAR, _BLOCK)

    def give_up(self, start: int, end: int) -> None:
        """Give back the blocks of bytes that nobody has read."""
        start = -(-start // _BLOCK) * _BLOCK
        end = end // _BLOCK * _BLOCK
        if end > start:
            self._punch(start, end - start)

    def release(self, offset: int, *, everything: bool = False) -> None:
        """Give back the blocks before an offset, in large steps and but for a margin.

        Args:
            offset: all before it has been read for good.
            everything: give back all that can be, now.
        """
        end = (offset - (0 if everything else MARGIN)) // _BLOCK * _BLOCK
        if self.note or end - self._released < (_BLOCK if everything else _STEP):
            return
        if self._punch(self._released, end - self._released):
            self._released = end

    def _punch(self, start: int, length: int) -> bool:
        if not _libc.fallocate64(self.descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length):
            return True
        reason = os.strerror(ctypes.get_errno())
        self.note = f"the raw console file grows, as holes cannot be punched here: {reason}"
        return False

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


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


class CheckpointFile:
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


_GROWTH = flags.MODIFY | flags.ONESHOT
_ENTRIES = flags.CREATE | flags.MOVED_TO | flags.ONESHOT | flags.ONLYDIR


class Watch:
    """One-shot watches for files and directories; each has an owner that is named when it fires.

    Raises:
        OSError: the system has no inotify instance left (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._owners: defaultdict[int, set[str]] = defaultdict(set)

    def fileno(self) -> int:
        """Readable when a watch has fired."""
        return int(self._inotify.fileno())

    def arm_file(self, owner: str, descriptor: int) -> None:
        """Fire at the next write to an open file.

        Raises:
            OSError: no watch is left (fs.inotify.max_user_watches).
        """
        path = f"/proc/self/fd/{descriptor}"
        self._add(owner, path, _GROWTH)

    def arm_directory(self, owner: str, directory: Path) -> None:
        """Fire at the next new name in a directory. Raises OSError, also when it is not there."""
        self._add(owner, os.fspath(directory), _ENTRIES)

    def fired(self) -> set[str]:
        """Owners of the watches that fired, without waiting; all owners if some were lost."""
        owners: set[str] = set()
        for event in self._inotify.read(timeout=0):
            if event.wd < 0:  # the queue overflowed: nobody knows who was meant
                owners.update(*self._owners.values())
            owners |= self._owners.pop(event.wd, set())
        return owners

    def forget(self, owner: str) -> None:
        """Take back an owner's watches."""
        for watch, owners in list(self._owners.items()):
            owners.discard(owner)
            if not owners:
                del self._owners[watch]
                with contextlib.suppress(OSError):
                    self._inotify.rm_watch(watch)

    def _add(self, owner: str, path: str, mask: int) -> None:
        self._owners[int(self._inotify.add_watch(path, mask))].add(owner)

    def close(self) -> None:
        """Take all watches back."""
        self._inotify.close()
