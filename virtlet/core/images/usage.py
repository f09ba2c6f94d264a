"""What the image store takes of its file system."""

import os
import time
from pathlib import Path

from attrs import frozen

from virtlet.host.mounts import at_or_below


@frozen
class FilesystemUsage:
    """CRI's `FilesystemUsage`, for ImageFsInfo."""

    mountpoint: Path
    """A directory of the file system; the kubelet looks the device up itself."""
    used_bytes: int
    inodes_used: int
    timestamp: int
    """Nanoseconds since the epoch."""


def measure(directory: Path) -> FilesystemUsage:
    """Add up what is below a directory: allocated bytes, and inodes with the directories'.

    What is mounted there, as a pod's shared volumes are, belongs to somebody else.
    """
    used_bytes = 0
    inodes = 0
    top = os.path.realpath(directory)
    waiting = [top]
    mounted = set(map(os.fspath, at_or_below(Path(top))))
    while waiting:
        inodes += 1
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.path not in mounted:
                                waiting.append(entry.path)
                            continue
                        stat = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    inodes += 1
                    # st_blocks counts 512-byte units whatever the block size: stat(2).
                    used_bytes += stat.st_blocks * 512
        except FileNotFoundError:
            continue
    return FilesystemUsage(directory, used_bytes, inodes, time.time_ns())
