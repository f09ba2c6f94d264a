"""Memory: a manager lives for months and needs little of what its start took."""

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
"""glibc gives each thread a heap of its own by default. Few of ours allocate much, and hardly ever
at one time, as most need the interpreter's lock for it."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ +(/.*)")
"""Head of a mapping of a file; see proc_pid_smaps(5)."""
_CHANGED = ("Anonymous:", "Swap:")
"""Fields of a mapping's pages that are not as in the file, in kB."""
_LOADING = 1.0
"""Seconds; the dynamic linker first maps a library whole, and its data over that soon after."""


def share_heap() -> None:
    """Have one heap for all threads; must come before they are started."""
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def settle() -> None:
    """Give back what only the start needed; takes about a second, and little of it the processor.

    What is garbage is freed, what is not is never looked at again by the collector, and the C
    library's free memory goes back to the node. So do pages of libraries' code and constants: the
    kernel maps sixteen for each that is touched, and most of those were the start's. Whatever is
    touched again comes back from the page cache, in a microsecond.
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
    """(start, end) of libraries' code and constants, where nobody changed what the file has."""
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
