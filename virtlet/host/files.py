"""Files: writing them whole or not at all, taking trees away, and those that become disks."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from virtlet.host import mounts


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
