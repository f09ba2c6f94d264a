"""Network namespaces for tests: entering one with the test's own thread."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def enter_namespace(path: Path) -> Iterator[None]:
    """Let the calling thread, and what it starts, live in a network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set(path)
        yield
    finally:
        _set(home)
        os.close(home)


def _set(namespace: Path | int) -> None:
    descriptor = os.open(namespace, os.O_RDONLY) if isinstance(namespace, Path) else namespace
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        if isinstance(namespace, Path):
            os.close(descriptor)
