"""Waiting for files to change, without polling and without a flood of notifications.

A watch fires once and is gone. Whoever is told looks at the file at its own pace from then on,
and arms a new watch when the file has been quiet. A guest that prints byte by byte thus costs
one notification per burst, not one per byte, for itself and for us.
"""

import contextlib
import os
from collections import defaultdict
from pathlib import Path

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

_GROWTH = flags.MODIFY | flags.ONESHOT
_ENTRIES = flags.CREATE | flags.MOVED_TO | flags.ONESHOT | flags.ONLYDIR


class Watch:
    """One-shot watches for files and directories; each has an owner that is named when it fires.

    Raises:
        OSError: the system has no inotify instance left (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._owners: defaultdict[int, set[str]] = defaultdict(set)

    def fileno(self) -> int:
        """Readable when a watch has fired."""
        return int(self._inotify.fileno())

    def arm_file(self, owner: str, descriptor: int) -> None:
        """Fire at the next write to an open file.

        Raises:
            OSError: no watch is left (fs.inotify.max_user_watches).
        """
        path = f"/proc/self/fd/{descriptor}"
        self._add(owner, path, _GROWTH)

    def arm_directory(self, owner: str, directory: Path) -> None:
        """Fire at the next new name in a directory. Raises OSError, also when it is not there."""
        self._add(owner, os.fspath(directory), _ENTRIES)

    def fired(self) -> set[str]:
        """Owners of the watches that fired, without waiting; all owners if some were lost."""
        owners: set[str] = set()
        for event in self._inotify.read(timeout=0):
            if event.wd < 0:  # the queue overflowed: nobody knows who was meant
                owners.update(*self._owners.values())
            owners |= self._owners.pop(event.wd, set())
        return owners

    def forget(self, owner: str) -> None:
        """Take back an owner's watches."""
        for watch, owners in list(self._owners.items()):
            owners.discard(owner)
            if not owners:
                del self._owners[watch]
                with contextlib.suppress(OSError):
                    self._inotify.rm_watch(watch)

    def _add(self, owner: str, path: str, mask: int) -> None:
        self._owners[int(self._inotify.add_watch(path, mask))].add(owner)

    def close(self) -> None:
        """Take all watches back."""
        self._inotify.close()
