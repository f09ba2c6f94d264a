"""The CRI log file: appended to, reopened after rotation, found again after a restart."""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Self

from virtlet.core.console.checkpoint import Checkpoint

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK


class CriLog:
    """A log file, open at its end. Its writer is the only one; others rename or remove it."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open a log; OSError when that fails or it is no ordinary file."""
        self._descriptor = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o640)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        self.inode = status.st_ino
        self.size = status.st_size

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open the log at its path to go on at its end; it and its directory are made if missing.

        A torn last line, which is none that we know of, is ended rather than cut.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        log = cls(path, create=True)
        if log.size and os.pread(log._descriptor, 1, log.size - 1) != b"\n":
            log.append(b"\n")
        return log

    @classmethod
    def probe(cls, path: Path) -> None:
        """Make the log's directory, and see whether what is at its path may be a log. OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            cls(path, create=False).close()

    @classmethod
    def of(cls, checkpoint: Checkpoint, path: Path) -> Self | None:
        """Find the log that a checkpoint names: at its path, or renamed beside it by rotation."""
        for candidate in (path, *_with_inode(path.parent, checkpoint.log_inode)):
            try:
                log = cls(candidate, create=False)
            except OSError:
                continue
            if log.inode == checkpoint.log_inode and log.size >= checkpoint.log_size:
                return log
            log.close()
        return None

    def tail(self, start: int) -> bytes:
        """All from an offset on."""
        return os.pread(self._descriptor, self.size - start, start)

    def cut(self, size: int) -> None:
        """Take away a torn end, which no reader counts as a line yet."""
        os.ftruncate(self._descriptor, size)
        self.size = size

    def is_gone(self) -> bool:
        """Whether someone deleted the file. Also learns of a size that someone else changed."""
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        return status.st_nlink == 0

    def append(self, text: bytes) -> None:
        """Write whole lines.

        Raises:
            OSError: the disk is full or fails. Some of the text, even a part of a line, may
                stand in the file then; it takes what a restart takes to go on.
        """
        rest = memoryview(text)
        while rest:
            written = os.write(self._descriptor, rest)
            self.size += written
            rest = rest[written:]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class NoLog:
    """Stands for a log nobody wants: takes everything, keeps nothing."""

    inode = 0
    size = 0

    def is_gone(self) -> bool:
        """Never."""
        return False

    def append(self, text: bytes) -> None:
        """Drop the text."""

    def close(self) -> None:
        """Nothing is open."""


def _with_inode(directory: Path, inode: int) -> list[Path]:
    """Files of a directory by inode number; as listed, without opening any."""
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.inode() == inode]
    except FileNotFoundError:
        return []
