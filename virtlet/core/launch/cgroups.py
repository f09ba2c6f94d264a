"""Putting a process into cgroups."""

import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)


def join(pid: int, cgroups: Iterable[Path], vm_id: str) -> tuple[Path, ...]:
    """Move a process into each cgroup: one per hierarchy on v1, one in all on v2.

    The emulator starts all the same where that is not possible: not every node lets the manager
    write there, and the pod is better off without the accounting than without its VM.

    Returns:
        Those it could not join, each logged with the reason.
    """
    failed = []
    for directory in cgroups:
        try:
            (directory / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            failed.append(directory)
            log.warning(
                "emulator not in its cgroup",
                extra={"vm": vm_id, "path": str(directory), "problem": error.strerror},
            )
    return tuple(failed)
