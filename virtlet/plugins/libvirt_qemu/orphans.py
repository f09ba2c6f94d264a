"""Emulators of the embedded driver: whose children they are, and who waits for them.

libvirt daemonizes QEMU, and waits for its process to vanish whenever it stops one. That is up to
the process that orphans fall to. In a container this is often the manager itself or a program
that reaps nothing, elsewhere an init that looks only now and then: every stop and every probe of
QEMU's capabilities would wait for it. So the manager takes orphans on itself, and reaps them.

As with the event loop, this is a property of the process.
"""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_PATIENCE = 300.0

_once = threading.Lock()
_running: set[str] = set()


def adopt_orphans(patience: float = _PATIENCE) -> None:
    """Become the process that orphans among our descendants fall to; idempotent.

    Args:
        patience: seconds after which an ended process of our own session that nobody waited for
            is taken for an orphan too.
    """
    with _once:
        if "reaper" in _running:
            return
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return
        threading.Thread(target=_reap, args=(patience,), name="reaper", daemon=True).start()
        _running.add("reaper")


def _reap(patience: float) -> None:
    """Wait for orphans that fell to us, and never for a child that somebody else waits for."""
    lingering: dict[int, float] = {}
    pause = 0.02
    while True:
        try:
            # Only looks: whoever started the child must still be able to wait for it.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            lingering.clear()
            time.sleep(0.2)
            continue
        zombies = _zombies()
        own = [pid for pid in zombies if not _is_orphan(pid)]
        for pid in zombies:
            since = lingering.setdefault(pid, time.monotonic())
            if pid not in own or time.monotonic() - since > patience:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        lingering = {pid: lingering[pid] for pid in own}
        # As long as a foreign zombie is there, waitid returns at once.
        pause = min(pause * 1.5, 0.2) if own else 0.02
        if own:
            time.sleep(pause)


def _zombies() -> list[int]:
    """Children of this process that have ended."""
    found: list[int] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in listing.read_text().split() if _has_ended(int(pid))]
    return found


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def _is_orphan(pid: int) -> bool:
    """A daemon's process: neither of our session nor the leader of its own.

    A direct child is in our session, or leads one when it was started so.
    """
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return False
    return session not in (pid, os.getsid(0))
