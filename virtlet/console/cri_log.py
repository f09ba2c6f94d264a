"""The CRI log: its format, and the file, found again after rotation and restarts.

A line is `2026-01-02T15:04:05.123456789Z stdout F payload` and a newline; `P` instead of `F`
says that the printed line goes on in the next one. The mapping is reversible, which is what
lets a restarted manager count how much of the raw file the log already holds: an F line stands
for its payload and a newline, a P line for its payload alone. Nothing is changed in between;
carriage returns and bytes that are not UTF-8 are kept. What the manager has to say, such as what
was lost, stands on stderr, which no guest has, so that nothing a guest prints looks like it.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from attrs import frozen

from virtlet.console.console_files import Checkpoint, ConsoleFiles
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError

MAX_PAYLOAD = 16 * 1024
"""Longest payload of one log line in bytes; longer printed lines become P parts."""

HEADER_SIZE = len("2026-01-02T15:04:05.123456789Z stdout F ")
"""Every header of ours is of this length."""

_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout ([FP]) ")
_NOTICE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stderr F \[virtlet: (.*)\]")
_LOSS = re.compile(rb"(\d+) bytes of console output were lost: the log could not be written")

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOG = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,  # an ancestor is a file
    errno.EINVAL,  # not an ordinary file
    errno.ENXIO,  # a socket
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""What a path meets that will be no log however often it is tried."""


@frozen
class Encoded:
    """Log lines made of raw bytes."""

    text: bytes
    """Whole log lines."""
    taken: int
    """How many of the raw bytes, from the first, the lines stand for."""


@frozen
class Decoded:
    """Raw bytes found in log text."""

    payload: bytes
    """What the whole lines stand for."""
    whole: int
    """Length of the text up to its last newline; what follows is a torn line."""
    lost: int = 0
    """Raw bytes that the lines say were lost."""


def encode(data: bytes, now: int, *, flush: bool) -> Encoded:
    """Turn raw bytes into log lines, all with the same time.

    Args:
        data: raw bytes; they begin a line of the log, whatever they are.
        now: nanoseconds since the epoch.
        flush: take the unfinished line at the end too, as a P line. Otherwise it is taken only
            in parts of MAX_PAYLOAD and its remainder is left for a later call.
    """
    stamp = _timestamp(now)
    full, part = stamp + b" stdout F ", stamp + b" stdout P "
    end = data.rfind(b"\n") + 1
    text = [_finished_lines(data[:end], full, part)] if end else []
    stop = len(data) if flush else end + (len(data) - end) // MAX_PAYLOAD * MAX_PAYLOAD
    for start in range(end, stop, MAX_PAYLOAD):
        text += (part, data[start : min(start + MAX_PAYLOAD, stop)], b"\n")
    return Encoded(b"".join(text), max(end, stop))


def encode_loss(count: int, now: int) -> bytes:
    """The log line that tells of so many lost bytes; `now` in nanoseconds since the epoch."""
    return encode_notice(
        f"{count} bytes of console output were lost: the log could not be written", now
    )


def encode_notice(text: str, now: int) -> bytes:
    """The log line that tells the pod's owner something; `now` in nanoseconds since the epoch.

    It stands for no raw bytes, and begins a line of the log as every other does.
    """
    words = " ".join(text.split()).encode(errors="replace")[:MAX_PAYLOAD]
    return _timestamp(now) + b" stderr F [virtlet: " + words + b"]\n"


def decode(text: bytes) -> Decoded:
    """Turn log text back into the raw bytes it stands for.

    Raises:
        ValueError: a whole line is not one that `encode`, `encode_loss` or `encode_notice` makes.
    """
    whole = text.rfind(b"\n") + 1
    payload, lost = [], 0
    for line in text[:whole].split(b"\n")[:-1]:
        header = _LINE.match(line)
        if header is None:
            notice = _NOTICE.fullmatch(line)
            if notice is None:
                raise ValueError("a log line without the header of this format")
            loss = _LOSS.fullmatch(notice[1])
            lost += int(loss[1]) if loss else 0
            continue
        payload.append(line[HEADER_SIZE:])
        if header[1] == b"F":
            payload.append(b"\n")
    return Decoded(b"".join(payload), whole, lost)


def _timestamp(now: int) -> bytes:
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{nanoseconds:09d}Z".encode()


def _finished_lines(lines: bytes, full: bytes, part: bytes) -> bytes:
    """Give headers to lines that all end in a newline; in the common case one replacement in C."""
    if not _has_long_line(lines):
        return full + lines[:-1].replace(b"\n", b"\n" + full) + b"\n"
    text: list[bytes] = []
    for line in lines[:-1].split(b"\n"):
        start = 0
        while len(line) - start > MAX_PAYLOAD:
            text += (part, line[start : start + MAX_PAYLOAD], b"\n")
            start += MAX_PAYLOAD
        text += (full, line[start:], b"\n")
    return b"".join(text)


def _has_long_line(lines: bytes) -> bool:
    """Whether a payload is over MAX_PAYLOAD; looks at one newline per MAX_PAYLOAD bytes."""
    start = 0
    while len(lines) - start > MAX_PAYLOAD:
        newline = lines.rfind(b"\n", start, start + MAX_PAYLOAD + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False


class CriLog:
    """A log file, open at its end. Its writer is the only one; others rename or remove it.

    Below the pod's log directory no link is followed, as somebody may have planted it: root would
    write what a guest prints to where it points.
    """

    def __init__(self, name: str, directory: int, *, create: bool) -> None:
        """Open a log.

        Args:
            name: of the file.
            directory: descriptor of its directory.
            create: make it if it is missing.

        Raises:
            OSError: that fails, or it is not an ordinary file with one name.
        """
        flags = _FLAGS | (os.O_CREAT if create else 0)
        self._descriptor = os.open(name, flags, 0o640, dir_fd=directory)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self.close()
            raise OSError(errno.EINVAL, "not an ordinary file with one name", name)
        self.inode = status.st_ino
        self.size = status.st_size

    @classmethod
    def at(cls, path: Path, below: Path | None = None) -> Self:
        """Open the log at its path to go on at its end; it and its directory are made if missing.

        A torn last line, which is none that we know of, is ended rather than cut.

        Args:
            path: of the log.
            below: from here on no link is followed; by default from the log's directory.
        """
        with _directory_of(path, below, create=True) as directory:
            log = cls(path.name, directory, create=True)
        if log.size and os.pread(log._descriptor, 1, log.size - 1) != b"\n":
            log.append(b"\n")
        return log

    @classmethod
    def probe(cls, path: Path, below: Path | None = None) -> None:
        """Make the log's directory, and see whether what is at its path may be a log. OSError."""
        with (
            _directory_of(path, below, create=True) as directory,
            contextlib.suppress(FileNotFoundError),
        ):
            cls(path.name, directory, create=False).close()

    @classmethod
    def of(cls, checkpoint: Checkpoint, path: Path, below: Path | None = None) -> Self | None:
        """Find the log that a checkpoint names: at its path, or renamed beside it by rotation."""
        with contextlib.suppress(OSError), _directory_of(path, below, create=False) as directory:
            for name in (path.name, *_with_inode(directory, checkpoint.log_inode)):
                try:
                    log = cls(name, directory, create=False)
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


@contextlib.contextmanager
def _directory_of(path: Path, below: Path | None, *, create: bool) -> Iterator[int]:
    """A descriptor of the directory that a file is in, reached without a link; see `CriLog.at`."""
    top = below or path.parent
    if create:
        top.mkdir(parents=True, exist_ok=True)
    directory = os.open(top, _DIRECTORY)
    try:
        for part in path.parent.relative_to(top).parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=directory)
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        yield directory
    finally:
        os.close(directory)


def _with_inode(directory: int, inode: int) -> list[str]:
    """Names of a directory by inode number; as listed, without opening any."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.inode() == inode]


def refuse_what_is_no_log(files: ConsoleFiles) -> None:
    """See that the log's path may be written one day; other trouble, as a full disk, may pass.

    Raises:
        FailedPrecondition: what is at the path, or above it, can be no log.
    """
    if files.log is None:
        return
    try:
        CriLog.probe(files.log, files.log_directory)
    except OSError as error:
        if error.errno in _NO_LOG:
            raise FailedPrecondition(
                f"the console of VM {files.vm_id} cannot be logged to {files.log}: {error}; a log "
                "is an ordinary file in a directory, reached without links: clear the path, or "
                "ask for another log_path"
            ) from error


def refusal(what: str, error: OSError) -> VirtletError:
    """The error for something on disk that failed; retrying helps once the disk is right."""
    if error.errno in _FULL:
        return ResourceExhausted(f"{what}: {error}; free some disk space")
    return Unavailable(f"{what}: {error}; see that the directory is there and writable")
