"""Nodes of block devices that the emulator's user can open.

A device of the node belongs to root and its group `disk`, and stays theirs. Each VM gets a node of
its own of the same device, in its own directory: the kernel looks at the node's owner and mode,
whatever those of the device's other nodes are.
"""

import os
import stat
from pathlib import Path

from virtlet.errors import FailedPrecondition
from virtlet.host.files import remove_file


def make_node(device: Path, path: Path, uid: int, gid: int, *, readonly: bool) -> None:
    """Make a node of a block device, anew if it is there already.

    Args:
        device: the device.
        path: where the node is made.
        uid: the only user that can open it.
        gid: its group.
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
    mode = 0o400 if readonly else 0o600
    os.mknod(path, stat.S_IFBLK | mode, device.stat().st_rdev)
    # Its directory belongs to the emulator's user, who may put a link in its place.
    os.chown(path, uid, gid, follow_symlinks=False)
