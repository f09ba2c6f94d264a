"""The process's memory: one heap, and release of what only the start needed."""

import contextlib
import ctypes
import gc
import mmap
import re
import time
from pathlib import Path

_M_ARENA_MAX = -8
"""mallopt's name for the number of heaps; source: malloc.h of glibc."""
_ARENAS = 1
"""By default glibc gives each thread its own heap. Few of our threads allocate much, and rarely at
the same time, because most need the interpreter's lock for it."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ +(/.*)")
"""First line of a file's mapping; see proc_pid_smaps(5)."""
_CHANGED = ("Anonymous:", "Swap:")
"""Fields with the size of pages that differ from the file, in kB."""
_LOADING = 1.0
"""Seconds. The dynamic linker maps a whole library first, and its data over it soon after."""


def share_heap() -> None:
    """Use one heap for all threads; call it before they are started."""
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def settle() -> None:
    """Release memory that only the start needed; takes about a second, and little CPU time.

    Free garbage, exempt other objects from later collections, and return the C library's free
    memory to the node. Drop pages of libraries' code and constants, too: the kernel maps sixteen
    for each that is touched, and most were touched at the start. A page that is touched again
    comes from the page cache within a microsecond.
    """
    gc.collect()
    gc.freeze()
    library = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # not every C library has it
        library.malloc_trim(0)
    loaded = _libraries()
    time.sleep(_LOADING)
    for start, end in loaded & _libraries():
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _libraries() -> set[tuple[int, int]]:
    """(start, end) of libraries' code and constants whose pages are all as in the file."""
    found: set[tuple[int, int]] = set()
    here = (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := _MAPPING.match(line):
            here = (int(head[1], 16), int(head[2], 16))
            if head[3] in ("r-xp", "r--p"):
                found.add(here)
        elif line.startswith(_CHANGED) and int(line.split()[1]):
            found.discard(here)
    return found
