"""Files: writing them whole or not at all, taking trees away, and those that become disks."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from virtlet.errors import FailedPrecondition
from virtlet.host import mounts

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writeback(descriptor: int) -> None:
    """Have the kernel begin to bring to the disk what was written to a file.

    It saves time of the fsync to come, and promises nothing: that one also tells of failures.
    """
    _libc.sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


Stamp = tuple[int, int, int]
"""What changes when a file is replaced or written: mtime in ns, size in bytes, inode."""


def stamps(directory: Path, suffix: str) -> dict[Path, Stamp]:
    """The files of a directory whose names end so, with what tells whether they have changed.

    Raises:
        OSError: the directory cannot be read.
    """
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and entry.is_file():
                status = entry.stat()
                found[directory / entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        temporary.replace(path)
    except OSError:
        remove_file(temporary)
        raise


def make_private_directory(path: Path, *, uid: int = -1, gid: int = -1, mode: int = 0o700) -> None:
    """Make a directory (and its parents) with exactly this owner and mode; idempotent."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, uid, gid)
    path.chmod(mode)


def change_owner(path: Path, before: int, uid: int, gid: int) -> None:
    """Give a file or block device to a user, if it belongs to the one before; follows no link.

    Raises:
        OSError: it is not there, or cannot be given.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        known = stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)
        if known and status.st_uid == before:
            os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)


def appear_at(source: Path, path: Path) -> None:
    """Give a file that nobody writes a second name; on another file system it is mounted there.

    What is there is replaced.
    """
    remove_file(path)
    with contextlib.suppress(OSError):
        os.link(source, path, follow_symlinks=False)
        return
    opened = [os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)]
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o600))
        opened.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        mounts.bind(opened[0], opened[1], readonly=True, follow=False, inner=False)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def copy_data(source: int, start: int, size: int, file: int, to: int = 0) -> None:
    """Copy a part of a file to a place in another, which ends there then; holes stay holes.

    Args:
        source: descriptor.
        start: where the part begins.
        size: of the part.
        file: descriptor of the other.
        to: where it begins there.

    Raises:
        EOFError: the source ends before the part does.
        OSError: it cannot be read, or the other not written.
    """
    if os.fstat(source).st_size < start + size:
        raise EOFError
    os.truncate(file, to + size)
    for at, hole in data_parts(source, start, start + size):
        os.lseek(file, to + at - start, os.SEEK_SET)
        while at < hole:
            sent = os.sendfile(file, source, at, hole - at)
            if not sent:
                raise EOFError
            at += sent


def data_parts(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where what is no hole begins and ends, in a part of a file.

    Args:
        file: descriptor.
        start: where the part begins.
        end: where it ends.

    Raises:
        OSError: the file cannot be read.
    """
    at = start
    while at < end:
        try:
            at = min(os.lseek(file, at, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        hole = min(os.lseek(file, at, os.SEEK_HOLE), end)
        if at < hole:
            yield at, hole
        at = hole


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; no error when it is not there.

    What is mounted there belongs to somebody else: it is unmounted first, and nothing is removed
    while that fails.

    Raises:
        VirtletError: something cannot be unmounted.
    """
    mounts.unmount_below(path)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def remove_file(path: Path) -> None:
    """Remove a file; no error when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


@contextlib.contextmanager
def new_disk_file(path: Path, uid: int, gid: int) -> Iterator[int]:
    """Make an empty file with mode 0600 and give its descriptor; remove it if the body fails.

    The directory belongs to the emulator's user, who may not be trusted: the file is made again
    and never followed to where a link points, so write through the descriptor (or through
    `/proc/self/fd/N`), not through the path.

    Raises:
        OSError: the file cannot be made.
    """
    remove_file(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.fchown(descriptor, uid, gid)
        yield descriptor
    except BaseException:
        remove_file(path)
        raise
    finally:
        os.close(descriptor)


def make_device_node(device: Path, path: Path, uid: int, gid: int, *, readonly: bool) -> None:
    """Make a node of a block or character device; replaces one that is there.

    A device of the node belongs to root, and stays root's. Each VM gets a node
    of its own of the same device, in its own directory: the kernel checks the owner and mode of
    the node that is opened, not those of the device's other nodes.

    Args:
        device: the device.
        path: of the new node.
        uid: the only user that can open it.
        gid: group of the user.
        readonly: whether it can be opened for reading only.

    Raises:
        FailedPrecondition: the file system of `path` has no devices.
    """
    if os.statvfs(path.parent).f_flag & os.ST_NODEV:
        raise FailedPrecondition(
            f"{path.parent} is on a file system that is mounted with nodev, so the emulator cannot "
            f"open {device}: mount it without, or choose another --data-dir"
        )
    remove_file(path)
    status = device.stat()
    mode = 0o400 if readonly else 0o600
    os.mknod(path, stat.S_IFMT(status.st_mode) | mode, status.st_rdev)
    # Its directory belongs to the emulator's user, who may put a link in its place.
    os.chown(path, uid, gid, follow_symlinks=False)
