"""The file of a checkpoint: a tar archive that is written in place, and is there whole or not.

    manifest.json    JSON, padded with spaces to a fixed size, so that it can be first
    memory           what the hypervisor wrote, in its own form; mostly holes
    disk.qcow2       what the root disk had beside its image, without a backing file

The hypervisor writes memory and disk where they stay, so nothing is copied, and what is a hole of
the members is a hole of the archive. Zeros follow the parts up to the next header.

Source: the GNU form of tar(5).
"""

import contextlib
import errno
import json
import os
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from virtlet.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from virtlet.model.hypervisor import Checkpoint

FORMAT = 1
"""Version of the archive, `format` of its manifest."""
ARCHIVE = "vm.tar"
"""Name of the archive in the directory of a pod's checkpoint."""
MANIFEST, MEMORY, DISK = "manifest.json", "memory", "disk.qcow2"
HEADER = tarfile.BLOCKSIZE
"""Bytes of a member's header, just before it."""
START = 1 << 18
"""Where the memory begins."""
MOST_SAID = 300
"""Characters of what a guest said, in the manifest."""
ROOM = START - 2 * HEADER
"""Bytes of the manifest."""


@contextlib.contextmanager
def new_archive(path: Path) -> Iterator[int]:
    """A file without a name, which has one once the body is done; root's alone.

    Args:
        path: its name then; absolute. Nothing may be there.

    Raises:
        InvalidArgument: the path is none.
        AlreadyExists: something is there.
        FailedPrecondition: no file can be made there.
    """
    check_absolute(path, "a file")
    with _errors_told(path), directory_at(path.parent) as directory:
        _refuse_taken(directory, path)
        with _new_file(directory, path) as file:
            yield file


@contextlib.contextmanager
def new_archive_in(path: Path, name: str = ARCHIVE) -> Iterator[int]:
    """As `new_archive`, the one file of an empty directory that is there; root's alone then.

    Args:
        path: of the directory, which is followed to no other place; absolute.
        name: of the file.

    Raises:
        InvalidArgument: the path is none.
        FailedPrecondition: no empty directory is there that others can write nothing to.
    """
    check_absolute(path, "a directory")
    archive = path / name
    with _errors_told(archive), directory_at(path, os.O_NOFOLLOW) as directory:
        _check_own(directory, path)
        _refuse_full(directory, path)
        with _new_file(directory, archive) as file:
            yield file
            _refuse_full(directory, path)
            os.chmod(f"/proc/self/fd/{directory}", 0o700)
        try:
            os.fsync(directory)
        except OSError:
            os.unlink(name, dir_fd=directory)
            raise


def check_absolute(path: Path, what: str) -> None:
    """Raise InvalidArgument for a path that is not absolute, or goes back."""
    if not path.is_absolute() or not path.name or ".." in path.parts:
        raise InvalidArgument(f"location {str(path)!r} is not the absolute path of {what}")


@contextlib.contextmanager
def directory_at(path: Path, more: int = 0) -> Iterator[int]:
    """A descriptor of a directory; `more` has further flags of open(2). Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | more)
    try:
        yield opened
    finally:
        os.close(opened)


@contextlib.contextmanager
def _new_file(directory: int, path: Path) -> Iterator[int]:
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    file = os.open(f"/proc/self/fd/{directory}", flags, 0o600)
    try:
        os.fchmod(file, 0o600)
        yield file
        os.fsync(file)
        os.link(f"/proc/self/fd/{file}", path.name, dst_dir_fd=directory)
    finally:
        os.close(file)


@contextlib.contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise _not_written(path, error) from None


def _check_own(directory: int, path: Path) -> None:
    """Refuse a directory in which others can put something in the place of what we write."""
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise FailedPrecondition(
            f"{path} is not the manager's user's alone to write to: give it to that user, with "
            "mode 0700"
        )


def _refuse_full(directory: int, path: Path) -> None:
    if os.listdir(directory):
        raise FailedPrecondition(f"{path} is not empty: give an empty directory")


def _refuse_taken(directory: int, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        raise _taken(path)


def _taken(path: Path) -> AlreadyExists:
    return AlreadyExists(f"{path} exists: remove it, or give the checkpoint another name")


def _not_written(path: Path, error: OSError) -> FailedPrecondition | ResourceExhausted:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"checkpoint {path}: no space left: free some, or give another")
    why = error.strerror
    if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
        why = "its file system has no files without a name (O_TMPFILE): give another directory"
    return FailedPrecondition(f"checkpoint {path} cannot be written: {why}")


def free_bytes(file: int) -> int:
    """Bytes that are free on the file system of a descriptor."""
    status = os.fstatvfs(file)
    return status.f_bavail * status.f_frsize


def finish(file: int, parts: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Write all that an archive has around its parts.

    Args:
        file: descriptor, with the parts in it.
        parts: where they are.
        facts: what the manifest says beside format, time and sizes.

    Raises:
        FailedPrecondition: the manifest is too large.
    """
    now = time.time()
    manifest = {
        "format": FORMAT,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        **facts,
        "memory": {"size": parts.memory.size},
        "disk": {"size": parts.disk.size},
    }
    text = json.dumps(manifest, indent=1, default=str).encode()
    if len(text) > ROOM:
        raise FailedPrecondition(
            f"its machine takes {len(text)} bytes to describe, and there is room for {ROOM}"
        )
    disk = parts.disk.offset
    end = disk - (-parts.disk.size // HEADER) * HEADER
    _put(file, 0, MANIFEST, ROOM, now)
    _write(file, text.ljust(ROOM), HEADER)
    _put(file, START - HEADER, MEMORY, disk - HEADER - START, now)
    _put(file, disk - HEADER, DISK, parts.disk.size, now)
    os.ftruncate(file, -(-(end + 2 * HEADER) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)


def _put(file: int, at: int, name: str, size: int, now: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(now), stat.S_IRUSR | stat.S_IWUSR
    _write(file, member.tobuf(tarfile.GNU_FORMAT), at)


def _write(file: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
