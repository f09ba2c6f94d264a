"""The emulators' logs, kept small. An emulator writes there by itself, or at its guest's wish."""

import contextlib
import os
import stat
from pathlib import Path

LONGEST = 4 << 20
"""Bytes that a log may take of the disk."""
KEPT = 256 << 10
"""Bytes of its end that are kept."""
INTERVAL = 10.0
"""Seconds between two looks."""
_NOTE = b"virtlet: what stood here was cut off, as the log was longer than %d bytes\n"


def cut(path: Path) -> None:
    """Cut all but the end off a log that is too long; nothing happens where there is none.

    The emulator appends to it, so its next line follows. One that was taken over may write
    anywhere in the file, which may be large in name alone: what it takes of the disk counts.

    Raises:
        OSError: it cannot be cut.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError), open(os.open(path, flags), "r+b", 0) as log:
        status = os.fstat(log.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_blocks * 512 > LONGEST:
            end = os.pread(log.fileno(), KEPT, max(0, status.st_size - KEPT))
            log.truncate(0)
            log.write(_NOTE % LONGEST + end.partition(b"\n")[2])
