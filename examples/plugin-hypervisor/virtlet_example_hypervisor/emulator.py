"""The process of a VM: started by one manager, found again by the next."""

import contextlib
import os
import pwd
import select
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from attrs import define, field

from virtlet.api import Node
from virtlet_example_hypervisor.qmp import Qmp


@define(eq=False)
class Emulator:
    """QEMU, or vmwrapper before it becomes QEMU."""

    vm_id: str
    pid: int
    pidfd: int
    """Signals go through it and never by the number, which another process may have meanwhile."""
    status: str = ""
    """QEMU's word for its state; "" until it has answered."""
    events: Qmp | None = None
    """What the thread that watches it listens to."""
    seen: threading.Event = field(factory=threading.Event)
    """Set once it has answered, or ended."""
    over: threading.Event = field(factory=threading.Event)
    """Set once it has ended and that is on record."""
    _lock: threading.Lock = field(factory=threading.Lock)

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self.over.is_set():
                signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> None:
        """Return once it has ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll()
        with contextlib.suppress(ChildProcessError):  # an earlier manager's
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)

    def close(self) -> None:
        """Let go of it, now that its end is on record."""
        with self._lock:
            self.over.set()
            os.close(self.pidfd)
        self.seen.set()


def spawn(
    vm_id: str, argv: Sequence[str], environment: Mapping[str, str], output: BinaryIO, node: Node
) -> Emulator:
    """Start vmwrapper, as the emulator's user and in a session that no manager's end ends.

    Raises:
        OSError: it cannot be started.
    """
    try:
        groups = os.getgrouplist(pwd.getpwuid(node.emulator_uid).pw_name, node.emulator_gid)
    except KeyError:
        groups = [node.emulator_gid]
    child = subprocess.Popen(
        argv,
        env=environment,
        cwd="/",
        umask=0o077,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        user=node.emulator_uid,
        group=node.emulator_gid,
        extra_groups=groups,
        start_new_session=True,
    )
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:
        child.kill()
        child.wait()
        raise
    child.returncode = 0  # not for Popen to wait for: who has the pidfd does
    return Emulator(vm_id, child.pid, pidfd)


def running(vm_ids: Collection[str], node: Node) -> Iterator[Emulator]:
    """The emulators of these VMs, each known by its VM's UUID among its arguments and its user."""
    names = {str(UUID(vm_id)).encode(): vm_id for vm_id in vm_ids}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(entry.name))
            # Read after the pidfd is open, so that both are of one process.
            words = _read(entry / "cmdline").split(b"\0")
            name = next((word for word in words if word in names), None)
            if name is not None and _owner(entry) == node.emulator_uid:
                yield Emulator(names[name], int(entry.name), pidfd)
            else:
                os.close(pidfd)


def _owner(path: Path) -> int:
    """Who owns a file; nobody when it is gone."""
    try:
        return path.stat().st_uid
    except OSError:
        return -1


def _read(path: Path) -> bytes:
    """A file's content; nothing when it is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
