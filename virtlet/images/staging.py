"""The staging file: a download on its way into the store, and what an image may cost the node."""

import contextlib
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError

log = logging.getLogger(__name__)

PART_PREFIX = "part_"
_SPACE_CHECK = 16 << 20
_LONGEST_VALIDATOR = 1024


@frozen
class ImageLimits:
    """Bounds for one image; all in bytes."""

    size: int = 64 << 30
    """Largest image file."""
    virtual_size: int = 1 << 40
    """Largest disk that an image may declare."""
    spare: int = 64 << 20
    """Free space that a download leaves on the file system, so that VMs can go on writing."""

    @classmethod
    def of(cls, size: int) -> "ImageLimits":
        """The limits that follow from the largest image file."""
        return cls(size=size, virtual_size=16 * size)


def _always() -> bool:
    return True


@frozen
class KnownImage:
    """An image of the store, as it came from the same source before."""

    digest: str
    size: int
    validator: str


class Lease:
    """A plugin's hold on a staging file, for one fetch.

    A plugin that waits for its server cannot be ended from outside; the lease can: whatever the
    plugin asks of it after that raises Unavailable, and what the plugin gave it is closed.
    """

    def __init__(self, staging: "StagingFile") -> None:
        self._staging = staging
        self._lock = threading.Lock()
        self._ended = False
        self._closers: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.size

    @property
    def validator(self) -> str:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.validator

    @property
    def complete(self) -> bool:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.complete

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        """See `StagingFile.begin`."""
        with self._held() as staging:
            staging.begin(validator, offset, total)

    def write(self, chunk: bytes) -> None:
        """See `StagingFile.write`."""
        with self._held() as staging:
            staging.write(chunk)

    def at_end(self, close: Callable[[], None]) -> None:
        """See `virtlet.model.image.Staging`."""
        with self._held():
            self._closers.append(close)

    def end(self) -> None:
        """Refuse whatever is asked from now on, and close what was given; idempotent."""
        with self._lock:
            self._ended = True
            closers, self._closers = self._closers, []
        for close in closers:
            try:
                close()
            except Exception:
                log.exception(
                    "image plugin failed at the end of its fetch",
                    extra={"image": self._staging.name},
                )

    @contextlib.contextmanager
    def _held(self) -> Iterator["StagingFile"]:
        with self._lock:
            if self._ended:
                # Another fetch may be at the file already: this one must not see what it has.
                raise self._staging.cancelled()
            yield self._staging


class StagingFile:
    """Implements `virtlet.model.image.Staging`; hashes while it is written.

    It lives as long as the manager at most: after a crash nothing but the digest could tell
    whether its bytes reached the disk, so parts found at start-up are removed instead of resumed.

    Args:
        path: the part file; made when the first byte is to be written.
        name: the image's name, for messages.
        limits: bounds for its size.
        known: the image as the store has it; the staging starts as a complete copy of that, so
            that a plugin may find that nothing changed.
    """

    def __init__(
        self, path: Path, name: str, limits: ImageLimits, known: KnownImage | None = None
    ) -> None:
        self.path = path
        self.touched = time.monotonic()
        self.name = name
        self._limits = limits
        self._known = known
        self._file: int | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._total: int | None = None
        self._validator = ""
        self._space_checked = 0
        self._wanted: Callable[[], bool] = _always

    # What a plugin sees

    @property
    def size(self) -> int:
        """Bytes already there."""
        return self._known.size if self._known else self._size

    @property
    def validator(self) -> str:
        """What the bytes already there were begun with."""
        return self._known.validator if self._known else self._validator

    @property
    def complete(self) -> bool:
        """Whether the bytes already there are a whole image of the store."""
        return self._known is not None

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        """Start over (offset 0) or go on (offset is the size).

        Raises:
            ResourceExhausted: `total` is over the image limit or the disk's free space.
            VirtletError: the offset is neither.
        """
        self._check_wanted()
        if offset != 0 and offset != self.size:
            raise VirtletError(f"image {self.name}: staging cannot begin at byte {offset}")
        if self._known and offset == 0:
            self._known = None
        if self._known:
            if total is not None and total != self._known.size:
                raise VirtletError(f"image {self.name}: it changed, and must begin at byte 0")
            return
        self._total = total
        if offset == 0:
            self._truncate()
        if total is not None:
            self._check_size(total)
            self._check_space(total - self._size)
        self._validator = validator if len(validator) <= _LONGEST_VALIDATOR else ""

    def write(self, chunk: bytes) -> None:
        """Append a chunk.

        Raises:
            ResourceExhausted: the limit for one image or the disk's space is reached.
            Unavailable: the pull was cancelled.
        """
        self._check_wanted()
        if self._known or self._file is None:
            raise VirtletError(f"image {self.name}: staging was written to before begin")
        self._check_size(self._size + len(chunk))
        if self._size - self._space_checked >= _SPACE_CHECK:
            self._check_space(0)
            self._space_checked = self._size
        rest = memoryview(chunk)
        try:
            while rest:
                written = os.write(self._file, rest)
                self._hash.update(rest[:written])
                self._size += written
                rest = rest[written:]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from None
            raise VirtletError(f"image {self.name}: cannot be stored: {error.strerror}") from None

    def at_end(self, close: Callable[[], None]) -> None:
        """Nothing: a file has no end before its fetch has one; leases have."""

    # What the core sees

    @property
    def total(self) -> int | None:
        """Bytes in all, once the plugin knows."""
        return self._known.size if self._known else self._total

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the bytes there."""
        return self._known.digest if self._known else f"sha256:{self._hash.hexdigest()}"

    def cancelled(self) -> Unavailable:
        """The error of a pull that nobody waits for any more."""
        return Unavailable(f"image {self.name}: the pull was cancelled by its caller")

    def attend(self, wanted: Callable[[], bool]) -> None:
        """Serve a pull, until `wanted` says that nobody waits for it any more."""
        self._wanted = wanted
        self.touched = time.monotonic()

    def finish(self, size: int) -> None:
        """Make sure that all is there, and on the disk.

        Args:
            size: bytes that the plugin says the image has.

        Raises:
            Unavailable: bytes are missing; fetching again may bring them.
            FailedPrecondition: there is nothing at all.
        """
        self.touched = time.monotonic()
        expected = size if self._total is None or self._known else max(size, self._total)
        if self.size != expected:
            raise Unavailable(
                f"image {self.name}: the download ended after {self.size} of {expected} bytes"
            )
        if self.size == 0:
            raise FailedPrecondition(f"image {self.name}: its source is empty")
        if self._file is not None:
            os.fsync(self._file)

    def discard(self) -> None:
        """Let go of the part file; idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def release(self) -> None:
        """Let go of the descriptor alone: the store has taken the file over."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # Checks

    def _truncate(self) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self._size = 0
        self._space_checked = 0

    def _check_wanted(self) -> None:
        if not self._wanted():
            raise self.cancelled()

    def _check_size(self, size: int) -> None:
        if size > self._limits.size:
            raise ResourceExhausted(
                f"image {self.name}: larger than the limit of {self._limits.size} bytes; "
                "use a smaller image or raise imageSizeLimit"
            )

    def _check_space(self, needed: int) -> None:
        stat = os.statvfs(self.path.parent)
        if stat.f_bavail * stat.f_frsize - self._limits.spare < needed:
            raise self._full()

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"image {self.name}: no space for it in {self.path.parent}; "
            "remove images or give that file system more room"
        )
