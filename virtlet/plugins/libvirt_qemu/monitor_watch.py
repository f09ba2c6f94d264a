"""Emulators that flood their monitor, which the embedded driver reads in the manager.

libvirt takes a line of up to 10 MiB from an emulator and makes values of it, which may be 300 times
as large, and has no setting for that. It reads a long line ever more slowly, as it looks for the
line's end in all of it for each KiB. So who looks often enough finds such an emulator before
libvirt has all of the line.

A domain's monitor is read by a thread of its own, and the kernel counts what each thread reads:
`rchar` of /proc/PID/task/TID/io, see proc_pid_io(5).
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from virtlet.errors import VirtletError
from virtlet.host.processes import jail_of, kill, kill_all_in, open_process, reap
from virtlet.plugins.libvirt_qemu.domain_endings import RunRecords, flooded
from virtlet.plugins.libvirt_qemu.domains import Domains
from virtlet.threads import Worker

log = logging.getLogger(__name__)

MOST = 1 << 20
"""Bytes that an emulator may send in a window. A start takes 60 KiB; of the events that a guest can
cause QEMU sends one of each kind a second."""
WINDOW = 10.0
"""Seconds."""
_INTERVAL = 0.1
"""Seconds between two looks, in which libvirt reads some 2 MiB."""
_THREAD = "vm-"
_LONGEST_NAME = 15
"""Bytes that the kernel keeps of a thread's name."""
_PATIENCE = 5.0
"""Seconds for a killed emulator to end."""


def thread_of(domain: str) -> str:
    """The name of the thread that reads the monitor of the domain with this name.

    It is cut: two domains may have threads of one name.
    """
    return f"{_THREAD}{domain}".encode()[:_LONGEST_NAME].decode(errors="ignore")


class MonitorWatch:
    """Looks at what libvirt's threads in a process read.

    Args:
        end: called with the name of a thread that reads too much; ends the emulator.
        process: the process's directory below /proc.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        end: Callable[[str], None],
        process: Path = Path("/proc/self"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._end = end
        self._process = process
        self._clock = clock
        self._began = -WINDOW
        self._all = 0
        self._before: dict[tuple[int, str], int] = {}
        """What each thread had read when the window began, or when its emulator was ended."""
        self._worker = Worker("libvirt-monitors", self.look)

    def start(self) -> None:
        """Begin to look; idempotent."""
        self._worker.start()

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._worker.stop()

    def look(self) -> float | None:
        """End emulators that have sent too much; returns the seconds until the next look."""
        read = _read(self._process)
        if read is None:
            log.warning("emulators that flood libvirt are not found: the kernel counts no reads")
            return None
        now = self._clock()
        if now - self._began >= WINDOW:
            self._began, self._all, self._before = now, read, self._threads()
        elif read - self._all > MOST:  # else no thread has
            for key, had in self._threads().items():
                if had - self._before.get(key, 0) > MOST:
                    self._before[key] = had  # its thread may outlive it, and see the next start
                    self._end(key[1])
        return _INTERVAL

    def _threads(self) -> dict[tuple[int, str], int]:
        found = {}
        for tid in os.listdir(self._process / "task"):
            thread = self._process / "task" / tid
            with contextlib.suppress(OSError):  # it has ended
                name = (thread / "comm").read_text(errors="replace").removesuffix("\n")
                if name.startswith(_THREAD) and (read := _read(thread)) is not None:
                    found[int(tid), name] = read
        return found


def end_flooding(
    thread: str,
    domains: Domains,
    runs: RunRecords,
    pid_of: Callable[[str], int | None],
) -> None:
    """End the emulator whose monitor a thread of libvirt's reads, and record why.

    Two domains may have threads of that name: then neither is ended, and the log names both.

    Args:
        thread: its name.
        domains: finds domains.
        runs: where ends are recorded.
        pid_of: the process of the running domain with a name.
    """
    with contextlib.suppress(VirtletError), domains.call("find who floods libvirt") as connection:
        named = [(*item, item[1].name()) for item in domains.all(connection)]
        running = [(item, pid_of(item[2])) for item in named if thread_of(item[2]) == thread]
        meant = [(vm_id, domain, pid) for (vm_id, domain, _), pid in running if pid]
        vms = [vm_id for vm_id, _, _ in meant]
        if len(meant) != 1:
            log.error("an emulator floods libvirt: stop its pod", extra={"one_of": vms})
            return
        ((vm_id, domain, pid),) = meant
        log.error("ending an emulator that floods libvirt", extra={"vm": vm_id})
        runs.end(vm_id, flooded())
        if not _kill(pid, vm_id):
            domain.destroy()


def _kill(pid: int, vm_id: str) -> bool:
    """Kill an emulator, and all in its jail; whether there was one, by its arguments."""
    pidfd = open_process(pid, str(uuid.UUID(vm_id)))
    if pidfd is None:
        return False
    try:
        jail = jail_of(pid)
        kill([pidfd], within=_PATIENCE)
        if jail:
            kill_all_in(jail, within=_PATIENCE)
        reap(pidfd)
    finally:
        os.close(pidfd)
    return True


def _read(directory: Path) -> int | None:
    """Bytes that a process or thread has read in all."""
    with contextlib.suppress(OSError):
        for line in (directory / "io").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "rchar":
                return int(value)
    return None
