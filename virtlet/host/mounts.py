"""Directories of the node that appear at another place too, and taking them away.

A bind is made whole before it is attached: a crash leaves it out or complete. Both ends are
descriptors, so no link is followed that somebody else may put in the way. The system calls are
those of Linux 5.12 (open_tree, mount_setattr, move_mount), for which libraries of C are too young.
"""

import ctypes
import os
import re
import struct
from pathlib import Path

from virtlet.errors import VirtletError

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
"""Numbers of the calls, the same on every architecture of today."""

# From <linux/fcntl.h>, <linux/mount.h> and <sys/mount.h>.
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_MS_PRIVATE, _MS_SLAVE = 1 << 18, 1 << 19
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_MOST_LAYERS = 1000
"""Mounts one above the other, or side by side, that are taken away at most."""

_libc = ctypes.CDLL(None, use_errno=True)


def bind(source: int, target: int, *, readonly: bool, follow: bool, inner: bool = True) -> None:
    """Have a directory appear at a place of ours, without set-uid programs and devices.

    What is mounted inside the directory comes along. Unmounting at our place never reaches the
    directory's own place.

    Args:
        source: the directory, open (O_PATH will do).
        target: an empty directory, open likewise.
        readonly: whether nothing can be written there.
        follow: whether what is mounted inside the directory later appears too.
        inner: False leaves out what is mounted inside the directory.

    Raises:
        OSError: the kernel refuses.
    """
    deep = _AT_RECURSIVE if inner else 0
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | deep
    tree = _call(_OPEN_TREE, source, b"", flags)
    try:
        attributes = _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC
        attributes |= _ATTR_RDONLY if readonly else 0
        # struct mount_attr: set, clear, propagation, user namespace.
        wanted = struct.pack("=QQQQ", attributes, 0, _MS_SLAVE if follow else _MS_PRIVATE, 0)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | deep, wanted, len(wanted))
        how = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _call(_MOVE_MOUNT, tree, b"", target, b"", how)
    finally:
        os.close(tree)


def at_or_below(path: Path) -> list[Path]:
    """Where something is mounted at a path or below it, in the order of mounting.

    Links above the path are followed, as the kernel's table names places by their real paths; the
    path itself is not.
    """
    place = os.fsencode(_real(path))
    table = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # Fifth field of proc_pid_mountinfo(5); blanks and their like are octal numbers.
    points = (_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split()[4]) for line in table)
    return [
        Path(os.fsdecode(point))
        for point in points
        if point == place or point.startswith(place + b"/")
    ]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path.parent), path.name)


_OCTAL = re.compile(rb"\\([0-7]{3})")


def unmount_below(path: Path) -> None:
    """Take away all that is mounted at a path or below it; idempotent.

    A user of such a mount keeps what it has open, and hinders nobody.

    Raises:
        VirtletError: something stays mounted; the message names it.
    """
    for _ in range(_MOST_LAYERS):
        points = at_or_below(path)
        if not points:
            return
        if _libc.umount2(os.fsencode(points[-1]), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            why = os.strerror(ctypes.get_errno())
            if points[-1] in at_or_below(path):
                raise VirtletError(
                    f"{points[-1]} cannot be unmounted ({why}), so nothing at it is removed: "
                    f"unmount it by hand (umount --lazy {points[-1]})"
                )
    raise VirtletError(f"{path} has more than {_MOST_LAYERS} mounts: unmount them by hand")


def _call(number: int, *arguments: int | bytes) -> int:
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
