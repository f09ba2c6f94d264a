"""Giving shared directories to the emulator's user."""

import contextlib
import os
from pathlib import Path

from virtlet.errors import FailedPrecondition


def give_away(directory: Path, uid: int, gid: int) -> None:
    """Make a directory and all in it belong to a user; links are not followed.

    Files that vanish meanwhile are none of our business.

    Raises:
        FailedPrecondition: an owner cannot be changed.
    """
    try:
        os.chown(directory, uid, gid)
        for _, directories, files, descriptor in os.fwalk(directory, follow_symlinks=False):
            for name in (*directories, *files):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
    except OSError as error:
        raise FailedPrecondition(
            f"{directory} cannot be given to the emulator's user ({error.strerror}): take the "
            "annotation VirtletChown9pfsMounts away, or use a volume that knows owners"
        ) from None
