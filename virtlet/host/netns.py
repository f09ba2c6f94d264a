"""Network namespaces kept alive by a file.

A namespace has no process of its own here: a bind mount of it holds it, in the mount namespace
we run in. Work inside a namespace is done by a thread that enters it and ends with the work, so
no other thread ever changes namespace; a program started by that thread starts inside.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from virtlet.errors import FailedPrecondition, VirtletError

T = TypeVar("T")

# From <sched.h> and <sys/mount.h>.
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Worker(threading.Thread, Generic[T]):
    """A thread that runs one function and keeps its result or error."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="netns")
        self._work = work
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # handed to the waiting thread by _apart
            self.error = error


def _apart(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own, and wait for it."""
    worker = _Worker(work)
    worker.start()
    worker.join()
    if worker.error is not None:
        raise worker.error
    return worker.result  # type: ignore[return-value]  # set whenever there is no error


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def exists(path: Path) -> bool:
    """Whether the file is a living namespace (and not the empty file a reboot leaves behind)."""
    try:
        return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def create(path: Path) -> None:
    """Make a new network namespace, with its loopback interface down, and hold it at `path`.

    Raises:
        VirtletError: there is a namespace at that path, or the kernel refuses a new one.
    """
    if exists(path):
        raise VirtletError(f"there is a network namespace at {path} already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)

    def hold() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        source = b"/proc/thread-self/ns/net"
        _check(_libc.mount(source, os.fsencode(path), None, _MS_BIND, None), "mount")

    try:
        _apart(hold)
    except OSError as error:
        path.unlink()
        raise VirtletError(f"cannot make the network namespace {path}: {error.strerror}") from None


def delete(path: Path) -> None:
    """Let go of a namespace; it ends with its last process. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        while exists(path):
            _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"unmount {path}")
        path.unlink()


def inside(path: Path, work: Callable[[], T]) -> T:
    """Run `work` inside a namespace and return what it returns.

    Raises:
        FailedPrecondition: there is no such namespace.
    """
    if not exists(path):
        raise FailedPrecondition(
            f"the network namespace {path} is gone: the pod must be made again"
        )

    def enter() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, _CLONE_NEWNET), f"enter {path}")
        finally:
            os.close(descriptor)
        return work()

    return _apart(enter)
