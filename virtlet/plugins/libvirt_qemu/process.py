"""What libvirt needs once per process: an event loop and quiet error reports.

These are properties of the process, not of a plugin instance, so this is one of the two places of
the plugin that keep state in a module: the thread lives as long as the process.
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
from typing import TypeVar

import libvirt

log = logging.getLogger(__name__)


_once = threading.Lock()
_running: set[str] = set()

T = TypeVar("T")
_CLONE_NEWUTS = 0x04000000  # <sched.h>
_LONGEST = 64
"""Bytes of a host name; uname(2)."""
_SLOW = 1.0
"""Seconds from which on a look-up is worth a word."""
_libc = ctypes.CDLL(None, use_errno=True)


def prepare() -> None:
    """Start libvirt's event loop; must come before the first connection is opened."""
    with _once:
        if "loop" in _running:
            return
        libvirt.virEventRegisterDefaultImpl()
        # libvirt's default prints every error to stderr, also those we handle.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _running.add("loop")


def _run_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


# The node's name: libvirt looks for its long form at every start of a VM, to write it into a log.
#
# Where the name is short and no file has it, the look-up goes to DNS and the start waits for that.
# A name with a dot in it libvirt takes as it is. So the embedded driver starts VMs on a thread
# that has a host name of its own: the node's, with the final dot of a name that is complete. A
# daemon's name is not ours to change: there the operator is told.


def without_look_up(work: Callable[[], T]) -> T:
    """Run work on a thread where libvirt does not look the host's name up; return its result.

    Programs that it starts have that name too.
    """
    if _is_complete(socket.gethostname()):
        return work()
    with ThreadPoolExecutor(1, "named", _name_completely) as pool:
        return pool.submit(work).result()


def tell_of_slow_look_ups() -> threading.Thread:
    """Look the node's name up as a libvirt daemon does, and log what to do when that is slow."""
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
    with contextlib.suppress(OSError):  # libvirt does not mind, however long that took.
        socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)
    took = time.monotonic() - started
    if took >= _SLOW:
        log.warning(
            "every start of a VM waits until libvirtd has looked the host's name up: write a line "
            "`127.0.1.1 %s` into /etc/hosts",
            name,
            extra={"seconds": round(took, 1)},
        )
