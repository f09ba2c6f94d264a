"""Directories of the node that appear at another place too, and taking them away.

A bind is made whole before it is attached: a crash leaves it out or complete. Both ends are
descriptors, so no link is followed that somebody else may put in the way. The system calls are
those of Linux 5.12 (open_tree, mount_setattr, move_mount), for which libraries of C are too young.
"""

import ctypes
import os
import re
import struct
from collections.abc import Iterator
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

_libc = ctypes.CDLL(None, use_errno=True)


def bind(source: int, target: int, *, readonly: bool, follow: bool, inner: bool = True) -> None:
    """Have a directory appear at a place of ours, without set-uid programs and devices.

    What is mounted inside the directory comes along, and goes when its owner unmounts it: as long
    as a copy is mounted at a directory, nobody can remove that directory. This takes a mount that
    receives from the directory's own, so later mounts appear as well. Unmounting at our place
    never reaches the directory's own place.

    Args:
        source: the directory, open (O_PATH will do).
        target: an empty directory, open likewise.
        readonly: whether nothing can be written there.
        follow: whether what is mounted inside the directory later appears also if nothing is
            mounted there now.
        inner: False leaves out what is mounted inside the directory, now and later.

    Raises:
        OSError: the kernel refuses.
    """
    receive = inner and (follow or holds_mounts(Path(os.readlink(f"/proc/self/fd/{source}"))))
    attributes = _ATTR_NODEV | _ATTR_NOEXEC | (_ATTR_RDONLY if readonly else 0)
    tree = _tree(source, attributes, receive=receive)
    try:
        how = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _call(_MOVE_MOUNT, tree, b"", target, b"", how)
    finally:
        os.close(tree)


def detached(source: int, *, readonly: bool, device: bool = False, inner: bool = False) -> int:
    """A mount of a file or directory that is attached nowhere yet.

    A process that has it can attach it in a mount namespace of its own, without a way to the
    source.

    Args:
        source: the file or directory, open (O_PATH will do).
        readonly: whether nothing can be written there.
        device: whether devices can be opened there.
        inner: whether what is mounted inside a directory comes along, now and later.

    Returns:
        A descriptor, the caller's to close.

    Raises:
        OSError: the kernel refuses.
    """
    attributes = (0 if device else _ATTR_NODEV) | (_ATTR_RDONLY if readonly else 0)
    return _tree(source, attributes, receive=inner)


def _tree(source: int, attributes: int, *, receive: bool) -> int:
    """A detached copy of a mount, without set-uid programs."""
    deep = _AT_RECURSIVE if receive else 0
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | deep
    tree = _call(_OPEN_TREE, source, b"", flags)
    try:
        # struct mount_attr: set, clear, propagation, user namespace.
        propagation = _MS_SLAVE if receive else _MS_PRIVATE
        wanted = struct.pack("=QQQQ", attributes | _ATTR_NOSUID, 0, propagation, 0)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | deep, wanted, len(wanted))
    except BaseException:
        os.close(tree)
        raise
    return tree


def holds_mounts(path: Path) -> bool:
    """Whether something is mounted inside a directory."""
    real = Path(os.path.realpath(path))
    return any(point != real for point in at_or_below(real))


def at_or_below(path: Path) -> list[Path]:
    """Where something is mounted at a path or below it, in the order of mounting.

    Links above the path are followed, as the kernel's table names places by their real paths; the
    path itself is not.
    """
    place = os.fsencode(_real(path))
    return [
        Path(os.fsdecode(point))
        for point in _points()
        if point == place or point.startswith(place.rstrip(b"/") + b"/")
    ]


def mount_of(path: Path) -> Path:
    """Where the file system is mounted that a path leads into, or would if it were there."""
    places = (Path(os.fsdecode(point)) for point in _points())
    real = Path(os.path.realpath(path))
    return max((p for p in places if real.is_relative_to(p)), key=lambda p: len(p.parts))


def _points() -> Iterator[bytes]:
    table = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # Fifth field of proc_pid_mountinfo(5); blanks and their like are octal numbers.
    return (_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split()[4]) for line in table)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path.parent), path.name)


_OCTAL = re.compile(rb"\\([0-7]{3})")


def unmount_below(path: Path) -> None:
    """Take away all that is mounted at a path or below it; idempotent.

    A user of such a mount keeps what it has open, and hinders nobody. What is mounted inside
    another mount goes with that one: the way to it is in the hands of whoever writes there, and
    may lead elsewhere by now.

    Raises:
        VirtletError: something stays mounted; the message names it.
    """
    while points := at_or_below(path):
        for point in _outermost(points):
            if _libc.umount2(os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
                continue
            why = os.strerror(ctypes.get_errno())
            if point in at_or_below(path):
                raise VirtletError(
                    f"{point} cannot be unmounted ({why}), so nothing at it is removed: "
                    f"unmount it by hand (umount --lazy {point})"
                )


def _outermost(points: list[Path]) -> set[Path]:
    """The places, each once: of several mounts at one, the uppermost is unmounted first."""
    known = set(points)
    return {point for point in points if known.isdisjoint(point.parents)}


def _call(number: int, *arguments: int | bytes) -> int:
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
