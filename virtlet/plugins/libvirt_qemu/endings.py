"""What is remembered of each domain's runs: that it was started, and how it ended.

libvirt forgets why a domain ended when its driver restarts, and does not tell a guest that
panicked from an emulator that was killed. One small file per domain closes both gaps.
"""

import contextlib
import ctypes
import json
import os
import threading
import time
from pathlib import Path

from attrs import asdict, frozen

from virtlet.host.files import remove_file, write_atomically
from virtlet.model.vm import VmExit

_POLL = 0.01

_ROOT = Path("/sys/fs/cgroup")
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_PATIENCE = 300.0
_once = threading.Lock()
_running: set[str] = set()


class Runs:
    """The records of all domains.

    Args:
        directory: ours alone; made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def begin(self, vm_id: str) -> None:
        """Note that the domain is being started."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            write_atomically(self._directory / vm_id, b"")

    def end(self, vm_id: str, how: VmExit) -> VmExit:
        """Note how the run ended; the first word on it stands.

        Returns:
            What is on record now.
        """
        with self._lock:
            known = self.ended(vm_id)
            if known is None and self.begun(vm_id):
                write_atomically(self._directory / vm_id, json.dumps(asdict(how)).encode())
        return known or how

    def forget(self, vm_id: str) -> None:
        """Drop the record; idempotent."""
        with self._lock:
            remove_file(self._directory / vm_id)

    def begun(self, vm_id: str) -> bool:
        """Whether the domain was started since it was defined."""
        return (self._directory / vm_id).exists()

    def ended(self, vm_id: str) -> VmExit | None:
        """How the run ended, where that was seen."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return VmExit(**json.loads((self._directory / vm_id).read_bytes()))
        return None

    def wait_for_end(self, vm_id: str, timeout: float) -> VmExit | None:
        """As `ended`, and give whoever records it some seconds to do so."""
        deadline = time.monotonic() + timeout
        while (how := self.ended(vm_id)) is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return how


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


# Telling an emulator that ran out of memory from one that died of something else.
#
# The kernel counts the processes that its OOM killer took in each memory cgroup: `oom_kill` in
# memory.events (v2) and in memory.oom_control (v1).


@frozen
class _Count:
    """How many were killed in a cgroup when the emulator started there."""

    file: Path
    killed: int


class OomWatch:
    """Remembers the counters of running emulators' cgroups."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def begin(self, vm_id: str, pid: int) -> None:
        """Take the counter of a running emulator's cgroup as it is now."""
        file = _counter(pid)
        killed = _killed(file) if file else None
        if file is not None and killed is not None:
            self._counts[vm_id] = _Count(file, killed)

    def end(self, vm_id: str) -> bool:
        """Whether the OOM killer was in the emulator's cgroup since; forgets the VM."""
        before = self._counts.pop(vm_id, None)
        if before is None:
            return False
        after = _killed(before.file)
        return after is not None and after > before.killed


def _counter(pid: int) -> Path | None:
    """The file with the counter of the memory cgroup a process is in; see cgroups(7)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    unified = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/") / "memory.oom_control"
        if not controllers:
            unified = _ROOT / path.lstrip("/") / "memory.events"
    return unified


def _killed(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None


# Emulators of the embedded driver: whose children they are, and who waits for them.
#
# libvirt daemonizes QEMU, and waits for its process to vanish whenever it stops one. That is up to
# the process that orphans fall to. In a container this is often the manager itself or a program
# that reaps nothing, elsewhere an init that looks only now and then: every stop and every probe of
# QEMU's capabilities would wait for it. So the manager takes orphans on itself, and reaps them.
#
# As with the event loop, this is a property of the process.


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
