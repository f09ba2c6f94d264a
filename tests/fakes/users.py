"""Acting as another user for a while."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_SETRESUID = 117  # of x86-64; the C library's function would change every thread
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Let the calling thread alone act with a user's permissions; needs root."""
    home = os.geteuid()
    _set(number)
    try:
        yield
    finally:
        _set(home)


def _set(number: int) -> None:
    if _libc.syscall(_SETRESUID, -1, number, -1) != 0:
        raise OSError(ctypes.get_errno(), "setresuid")
