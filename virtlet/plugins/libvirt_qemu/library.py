"""Loading libvirt's library so that it does not write to our stderr.

It must not be imported before `quietly` was entered: the Python module initialises libvirt as it
is loaded, and libvirt reads its settings then and never again.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST_LOG = 1 << 20
_SETTING = "LIBVIRT_LOG_OUTPUTS"


@contextlib.contextmanager
def quietly(log: Path | None) -> Iterator[None]:
    """Load libvirt inside this context.

    Args:
        log: file for the embedded driver's own messages, errors only (the default is stderr, with
            several lines for every VM); None leaves them alone. An operator's
            LIBVIRT_LOG_OUTPUTS wins.
    """
    if log is None or _SETTING in os.environ:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LONGEST_LOG:
        log.unlink()
    os.environ[_SETTING] = f"4:file:{log}"
    try:
        yield
    finally:
        del os.environ[_SETTING]
