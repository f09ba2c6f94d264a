"""Disk space reserved for removing pods.

Stopping and removing a pod writes too: the database, the driver's notes, plugins' state. So space
is reserved before a pod is made, and released step by step when a pod has to go and the disk is
full. The next pod that is made fills the reserve again.
"""

import contextlib
import logging
import os
from pathlib import Path

from virtlet.errors import ResourceExhausted

log = logging.getLogger(__name__)

SIZE = 32 << 20
"""Bytes reserved on each file system."""
STEP = 4 << 20
"""Bytes that the end of a pod may take. Where less is free, as much is released."""


class DiskReserve:
    """The reserved space: a file on each file system.

    Args:
        file: in the data directory.
        database: the database. If it is on another file system, space is reserved there too.
        size: bytes.
    """

    def __init__(self, file: Path, database: Path, size: int = SIZE) -> None:
        self._file = file
        self._database = database
        self._size = size

    def fill(self) -> None:
        """Reserve the space before something is made; nothing to do while it is reserved.

        Raises:
            ResourceExhausted: there is too little space.
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
        """Reserve as much as there is room for, after something was removed; never raises."""
        with contextlib.suppress(ResourceExhausted):
            self.fill()

    def release(self) -> None:
        """Release a step of the space if the disk is full, before something ends; never raises."""
        for file in self._files():
            try:
                if _free(file) < STEP:
                    _shrink(file)
            except OSError as error:
                log.warning(
                    "reserve not released", extra={"file": str(file), "problem": str(error)}
                )

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
    log.warning("the disk is full: reserved space is released", extra=extra)
