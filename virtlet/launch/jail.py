"""What a jailed emulator sees of the node.

The emulator's user has no way to most of it: the directories above belong to root alone. So the
manager makes a mount of each file, attached nowhere, and vmwrapper moves them into the root of
its own. Nothing else is there but what vmwrapper's
command line alone tells (`own_paths`).
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import Factory, define, evolve

from virtlet.errors import FailedPrecondition
from virtlet.host import mounts
from virtlet.host.seccomp import emulator_filter
from virtlet.model.launch import Visible


@define
class JailMounts:
    """The root of an emulator; owns its mounts' descriptors."""

    mounts: dict[str, int] = Factory(dict)
    """Descriptor of a detached mount, by the path that it gets."""
    writable: set[str] = Factory(set)
    """Those paths that can be written."""
    syscalls: bytes = b""
    """The seccomp filter."""
    links: list[str] = Factory(list)
    """Links of the node that are links in the jail too."""

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        taken, self.mounts = self.mounts, {}
        for descriptor in taken.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)


def make_jail(
    visible: Sequence[Visible], pid: int, *, io_uring: bool = False, alone: bool = False
) -> JailMounts:
    """Make the mounts of one jail.

    Args:
        visible: what is in it; of several that name one path the most permissive counts.
        pid: of the process that becomes the emulator; it sees its own part of `/proc`.
        io_uring: whether it may use io_uring.
        alone: whether it may start no process.

    Raises:
        FailedPrecondition: something is not there, or cannot be mounted; names it.
    """
    jail = JailMounts()
    try:
        for item in _needed(visible):
            _add(jail, item)
        # As nobody outside knows its number there, it finds itself by `self` alone.
        _mount(jail, "/proc/self", Visible(path=Path(f"/proc/{pid}")))
        jail.syscalls = emulator_filter(pid, io_uring=io_uring, alone=alone)
    except BaseException:
        jail.close()
        raise
    return jail


def _needed(visible: Iterable[Visible]) -> Iterable[Visible]:
    """Each path once, and nothing that can be read in a directory above it already."""
    known: dict[str, Visible] = {}
    for item in visible:
        path = os.path.normpath(item.path)
        before = known.get(path, item)
        known[path] = evolve(
            item,
            writable=item.writable or before.writable,
            inner=item.inner or before.inner,
            optional=item.optional and before.optional,
            source=item.source or before.source,
        )
    for path in sorted(known):
        item = known[path]
        above = (known.get(str(parent)) for parent in Path(path).parents)
        if not item.writable and any(a and _holds(a, Path(path)) for a in above):
            continue
        yield item


def _holds(above: Visible, path: Path) -> bool:
    """Whether a directory shows a path below it, for reading alone."""
    try:
        same = above.path.lstat().st_dev == path.lstat().st_dev
    except OSError:
        return False
    return same and not above.writable and above.path.is_dir() and not above.path.is_symlink()


def _add(jail: JailMounts, item: Visible) -> None:
    path = os.path.normpath(item.path)
    try:
        kind = os.lstat(item.source or path).st_mode
    except OSError as error:
        if item.optional and isinstance(error, FileNotFoundError):
            return
        raise FailedPrecondition(
            f"{item.source or path}, which the emulator needs: {error.strerror}"
        ) from None
    if not stat.S_ISLNK(kind):
        _mount(jail, path, item, device=stat.S_ISBLK(kind) or stat.S_ISCHR(kind))
        if item.writable:
            jail.writable.add(path)
    elif item.writable:
        raise FailedPrecondition(
            f"{path} is a link, and the emulator gets no file that a link leads to: something put "
            "it there in the place of a file of the VM"
        )
    else:
        jail.links.append(path)


def _mount(jail: JailMounts, target: str, item: Visible, *, device: bool = False) -> None:
    try:
        # A link that was put there meanwhile is shown itself, and leads to what the jail has.
        opened = os.open(item.source or item.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            jail.mounts[target] = mounts.detached(
                opened, readonly=not item.writable, device=device, inner=item.inner
            )
        finally:
            os.close(opened)
    except OSError as error:
        raise FailedPrecondition(
            f"{item.path} cannot be shown to the emulator ({error.strerror}): the manager has to "
            "be root, on Linux 5.12 or newer; see the setting emulatorJail"
        ) from None
