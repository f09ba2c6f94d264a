"""Room on the disk for taking pods away, whatever fills it.

What stops or removes a pod writes too: the database, the driver's notes, plugins' state. So some
space is set aside before a pod is made, and given back bit by bit when one has to go and the disk
is full. The next pod that is made sets it aside again.
"""

import contextlib
import logging
import os
from pathlib import Path

from virtlet.errors import ResourceExhausted

log = logging.getLogger(__name__)

SIZE = 32 << 20
"""Bytes set aside on each file system."""
STEP = 4 << 20
"""Bytes that a pod's end may take; where less is free, so much is given back."""


class DiskReserve:
    """What is set aside.

    Args:
        file: in the data directory.
        database: the database; where it lies on another file system, space is set aside there too.
        size: bytes.
    """

    def __init__(self, file: Path, database: Path, size: int = SIZE) -> None:
        self._file = file
        self._database = database
        self._size = size

    def keep(self) -> None:
        """Set the space aside, before something is made; nothing to do while it is.

        Raises:
            ResourceExhausted: there is not so much of it.
        """
        for file in self._files():
            try:
                _grow(file, self._size)
                problem = "" if _free(file) >= STEP else "hardly any space is left"
            except OSError as error:
                problem = error.strerror or "unknown"
            if problem:
                raise ResourceExhausted(
                    f"the file system of {file.parent} has no room for another VM ({problem}): "
                    "free some of its space; pods that are there can be stopped and removed all "
                    "the same"
                )

    def refill(self) -> None:
        """Set aside what there is room for, after something was taken away; never raises."""
        with contextlib.suppress(ResourceExhausted):
            self.keep()

    def make(self) -> None:
        """See to it that something can be taken away; never raises."""
        for file in self._files():
            try:
                if _free(file) < STEP:
                    _shrink(file)
            except OSError as error:
                log.warning("no room made", extra={"file": str(file), "problem": str(error)})

    def _files(self) -> list[Path]:
        files, beside = [self._file], self._database.parent
        if beside.is_dir() and beside.stat().st_dev != self._file.parent.stat().st_dev:
            files.append(self._database.with_name(f"{self._database.name}-{self._file.name}"))
        return files


def _free(file: Path) -> int:
    system = os.statvfs(file.parent)
    return system.f_bavail * system.f_frsize


def _grow(file: Path, size: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _shrink(file: Path) -> None:
    size = file.stat().st_size if file.exists() else 0
    if not size:
        return
    left = max(0, size - STEP)
    os.truncate(file, left)
    extra = {"file": str(file), "left": left}
    log.warning("the disk is full: space that was set aside is given back", extra=extra)
