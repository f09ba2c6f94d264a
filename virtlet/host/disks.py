"""Files that become disks of a VM."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from virtlet.host.files import remove_file


@contextlib.contextmanager
def new_disk_file(path: Path, uid: int, gid: int) -> Iterator[int]:
    """Make an empty file with mode 0600 and give its descriptor; remove it if the body fails.

    The directory belongs to the emulator's user, who may not be trusted: the file is made anew
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
