"""What libvirt needs of the process that it is loaded into.

An event loop, quiet error reports, a reaper of emulators, and a host name that needs no look-up.
These are properties of the process, not of a plugin instance, so that this module has state: its
threads live as long as the process.
"""

import contextlib
import ctypes
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import libvirt

from virtlet.threads import BackOff

log = logging.getLogger(__name__)


_once = threading.Lock()
_running: set[str] = set()

T = TypeVar("T")
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_PATIENCE = 300.0
_CLONE_NEWUTS = 0x04000000  # <sched.h>
_LONGEST = 64
"""Bytes of a host name; uname(2)."""
_SLOW = 1.0
"""Seconds from which on a look-up is logged."""
_libc = ctypes.CDLL(None, use_errno=True)


def prepare() -> None:
    """Start libvirt's event loop; must come before the first connection is opened."""
    with _once:
        if "loop" in _running:
            return
        libvirt.virEventRegisterDefaultImpl()
        # By default libvirt prints every error to stderr, also those that are handled.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _running.add("loop")


def _run_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


# The node's name: libvirt looks its long form up at every start of a VM, to write it into a log.
#
# If the name is short and not in a file, DNS is asked and the start waits. libvirt does not look up
# a name with a dot in it. So the embedded driver starts VMs on a thread that has a host name of its
# own: the node's with a final dot, as complete names have. The name that a daemon sees cannot be
# changed here, so that the operator is told.


def without_look_up(work: Callable[[], T]) -> T:
    """Run work on a thread where libvirt does not look the host's name up; return its result.

    Programs that it starts have that name too.
    """
    if _is_complete(socket.gethostname()):
        return work()
    with ThreadPoolExecutor(1, "named", _name_completely) as pool:
        return pool.submit(work).result()


def tell_of_slow_look_ups() -> threading.Thread:
    """Look the node's name up as a libvirt daemon does, and log what to do if that is slow."""
    looking = threading.Thread(target=_look_up, name="host-name", daemon=True)
    looking.start()
    return looking


def _is_complete(name: str) -> bool:
    """Whether libvirt takes a name as it is; virGetHostname of its util/virutil.c."""
    return name.startswith("localhost") or "." in name


def _name_completely() -> None:
    """Give this thread, and no other, a host name of its own."""
    if _libc.unshare(_CLONE_NEWUTS) != 0:
        problem = os.strerror(ctypes.get_errno())
        log.warning("VM starts wait for the look-up of the host's name", extra={"problem": problem})
        return
    socket.sethostname(socket.gethostname()[: _LONGEST - 1] + ".")


def _look_up() -> None:
    name = socket.gethostname()
    if _is_complete(name):
        return
    started = time.monotonic()
    with contextlib.suppress(OSError):  # libvirt ignores it too, however long it took
        socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)
    took = time.monotonic() - started
    if took >= _SLOW:
        log.warning(
            "every start of a VM waits until libvirtd has looked the host's name up: write a line "
            "`127.0.1.1 %s` into /etc/hosts",
            name,
            extra={"seconds": round(took, 1)},
        )


# Emulators of the embedded driver, which the manager adopts and reaps.
#
# libvirt daemonizes QEMU, and waits for its process to vanish whenever it stops one. That takes the
# process that adopts orphans. In a container this is often the manager itself or a program that
# reaps nothing, elsewhere an init that looks only now and then: every stop and every probe of
# QEMU's capabilities would wait for it.


def adopt_orphans(patience: float = _PATIENCE) -> None:
    """Adopt and reap orphans among our descendants; idempotent.

    Args:
        patience: seconds after which an ended process of our own session that was not waited
            for is taken for an orphan too.
    """
    with _once:
        if "reaper" in _running:
            return
        if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return
        threading.Thread(target=_reap, args=(patience,), name="reaper", daemon=True).start()
        _running.add("reaper")


def _reap(patience: float) -> None:
    """Wait for adopted orphans, and never for a child that another thread waits for."""
    lingering: dict[int, float] = {}
    pauses = BackOff(0.02, 0.2, growth=1.5)
    while True:
        try:
            # WNOWAIT leaves a child to the thread that started it.
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
        if own:
            time.sleep(pauses.pause())
        else:
            pauses.reset()


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
    """Whether a process is a daemon's: neither of our session nor the leader of its own.

    A direct child is in our session, or leads one when it was started so.
    """
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return False
    return session not in (pid, os.getsid(0))
