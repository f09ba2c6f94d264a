"""The staging file: a download on its way into the store, and what an image may cost the node."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    VirtletError,
)
from virtlet.host.files import remove_file, start_writeback
from virtlet.images.conversion import TooLarge, Unpacker, convert
from virtlet.model.image import Conversion

PART_PREFIX = "part_"
_STEP = 16 << 20
"""Bytes after which space is looked at, and the disk begins to write."""
_LONGEST_VALIDATOR = 1024
HEAD = 512
"""Bytes by which it is known how content is unpacked."""
_RATIO = 1000
_ALWAYS_UNPACKED = 1 << 30
"""Bytes that an image may unpack to whatever its ratio is: blank disks shrink to nothing."""


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


Unpack = Callable[[bytes], Conversion | None]
"""Says what unpacks content, by its first `HEAD` bytes, or fewer where it has no more."""


def _always() -> bool:
    return True


def _as_it_is(head: bytes) -> None:
    """Nothing is unpacked."""


@frozen
class KnownImage:
    """An image of the store, as it came from the same source before."""

    digest: str
    size: int
    validator: str


class StagingFile:
    """Implements `virtlet.model.image.Staging`; hashes while it is written, and unpacks.

    Sizes, offsets and the digest are those of what is fetched. The file has what that unpacks to.

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
        self._stepped = 0
        self._wanted: Callable[[], bool] = _always
        self._unpack: Unpack = _as_it_is
        self._head: bytearray | None = None
        self._unpacker: Unpacker | None = None
        self._formats: list[str] = []

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
        due = self._size - self._stepped >= _STEP
        if self._unpacker or due:
            self._check_space(0)
        if due:
            start_writeback(self._file)
            self._stepped = self._size
        if self._head is None:
            self._store(self._file, chunk)
            return
        self._count(chunk)
        self._head += chunk
        if len(self._head) >= HEAD:
            self._take_head(self._file)

    def at_end(self, close: Callable[[], None]) -> None:
        """Nothing: a file has no end before its fetch has one; leases have."""

    def _count(self, chunk: bytes | memoryview) -> None:
        self._hash.update(chunk)
        self._size += len(chunk)

    def _take_head(self, file: int) -> None:
        """Find out how the content is unpacked, and store what there is of it."""
        assert self._head is not None
        chunk, self._head = bytes(self._head), None
        conversion = self._unpack(chunk[:HEAD])
        if conversion is not None:
            self._formats.append(conversion.format)
            self._unpacker = Unpacker(self.name, conversion, file, self._limits.size)
        self._store(file, chunk, counted=True)

    def _store(self, file: int, chunk: bytes, *, counted: bool = False) -> None:
        if self._unpacker is not None:
            if not counted:
                self._count(chunk)
            with self._unpacking():
                self._unpacker.write(chunk)
            self._check_ratio(file)
            return
        rest = memoryview(chunk)
        try:
            while rest:
                written = os.write(file, rest)
                if not counted:
                    self._count(rest[:written])
                rest = rest[written:]
        except OSError as error:
            raise self.not_stored(error) from None

    # What the core sees

    @property
    def source_format(self) -> str:
        """What it was before it was unpacked and converted; "" where it is as it came."""
        return " ".join(self._formats)

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

    def attend(self, wanted: Callable[[], bool], unpack: Unpack = _as_it_is) -> None:
        """Serve a pull, until `wanted` says that nobody waits for it any more."""
        self._wanted = wanted
        self._unpack = unpack
        self.touched = time.monotonic()

    def finish(self, size: int) -> None:
        """Make sure that all is there, and on the disk.

        Args:
            size: bytes that the plugin says the image has.

        Raises:
            Unavailable: bytes are missing; fetching again may bring them.
            FailedPrecondition: there is nothing at all.
            InvalidArgument, ResourceExhausted: it cannot be unpacked.
        """
        self.touched = time.monotonic()
        expected = size if self._total is None or self._known else max(size, self._total)
        if self.size != expected:
            raise Unavailable(
                f"image {self.name}: the download ended after {self.size} of {expected} bytes"
            )
        if self.size == 0:
            raise FailedPrecondition(f"image {self.name}: its source is empty")
        if self._file is not None and not self._known:
            if self._head is not None:
                self._take_head(self._file)
            if self._unpacker is not None:
                with self._unpacking():
                    self._unpacker.finish()
                self._check_ratio(self._file)
            try:
                os.fsync(self._file)
            except OSError as error:
                raise self.not_stored(error) from None

    def convert(self, conversion: Conversion, gid: int) -> None:
        """Have a program make another file of it, which takes its place.

        Args:
            conversion: the program.
            gid: the group that it runs in, which may read the file.

        Raises:
            InvalidArgument, ResourceExhausted, FailedPrecondition: it cannot.
            Unavailable: the pull was cancelled, or the program was ended.
        """
        target = self.path.with_name(f"{self.path.name}.converted")
        limit = min(self._limits.size, max(self._free(), 1))
        try:
            convert(
                self.name,
                conversion,
                self.path,
                target,
                limit=limit,
                gid=gid,
                wanted=self._wanted,
            )
            target.replace(self.path)
        except (TooLarge, InvalidArgument) as error:
            full = self._is_full() or (isinstance(error, TooLarge) and limit < self._limits.size)
            raise (self._full() if full else error) from None
        except OSError as error:
            raise self.not_stored(error) from None
        finally:
            remove_file(target)
        self.release()
        self._formats.append(conversion.format)

    def discard(self) -> None:
        """Let go of the part file; idempotent."""
        self._end_unpacker()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        remove_file(self.path)

    def release(self) -> None:
        """Let go of the descriptor alone: the store has taken the file over."""
        self._end_unpacker()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # Checks

    def _truncate(self) -> None:
        if self._file is None:
            remove_file(self.path)  # It may be a converted one.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                self._file = os.open(self.path, flags, 0o600)
            except OSError as error:
                raise self.not_stored(error) from None
        self._end_unpacker()
        self._formats.clear()
        self._head = None if self._unpack is _as_it_is else bytearray()
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self._size = 0
        self._stepped = 0

    def _end_unpacker(self) -> None:
        if self._unpacker is not None:
            self._unpacker.end()
            self._unpacker = None

    @contextlib.contextmanager
    def _unpacking(self) -> Iterator[None]:
        try:
            yield
        except VirtletError as error:
            self._validator = ""  # What comes next begins at byte 0.
            if isinstance(error, InvalidArgument) and self._is_full():
                raise self._full() from None
            raise

    def _check_wanted(self) -> None:
        if not self._wanted():
            raise self.cancelled()

    def _check_size(self, size: int) -> None:
        if size > self._limits.size:
            raise ResourceExhausted(
                f"image {self.name}: larger than the limit of {self._limits.size} bytes; "
                "use a smaller image or raise imageSizeLimit"
            )

    def _check_ratio(self, file: int) -> None:
        most = max(_ALWAYS_UNPACKED, _RATIO * self._size)
        if os.fstat(file).st_size > most:
            raise ResourceExhausted(
                f"image {self.name}: it unpacks to more than {_RATIO} times its size; offer it "
                "unpacked, as qcow2"
            )

    def _check_space(self, needed: int) -> None:
        if self._free() < needed:
            raise self._full()

    def _free(self) -> int:
        stat = os.statvfs(self.path.parent)
        return stat.f_bavail * stat.f_frsize - self._limits.spare

    def _is_full(self) -> bool:
        """Whether a program that has failed most likely found no space."""
        return self._free() <= 0

    def not_stored(self, error: OSError) -> VirtletError:
        """What to tell of a failure of the disk."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full()
        return VirtletError(f"image {self.name}: cannot be stored: {error.strerror}")

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"image {self.name}: no space for it in {self.path.parent}; "
            "remove images or give that file system more room"
        )
