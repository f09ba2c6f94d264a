"""The node's templates: which are there, and the one that is being made.

One is made at a time, in the background, when a VM boots that could have used it. A template is of
one boot of the node, as another kernel or microcode may be another CPU.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from attrs import define, field

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host.files import make_private_directory, remove_tree

log = logging.getLogger(__name__)

MOST = 4
"""Templates of a node; the one that was used least recently makes way."""


@define
class Templates:
    """Templates by what their VMs have in common (`templates.key_of`)."""

    _lock: threading.Lock = field(factory=threading.Lock)
    _making: threading.Thread | None = None
    _refused: dict[str, str] = field(factory=dict)
    """Key to why there is none: that is not tried again before the manager's next start."""

    def find(self, parent: Path, key: str, make: Callable[[Path], None]) -> Path | None:
        """The directory of the template with a key; None where there is none.

        One is made then, unless another one is being made.

        Args:
            parent: where templates are.
            key: what the VM has in common with others.
            make: makes one in a directory.

        Raises:
            FailedPrecondition: it could not be made; says why.
        """
        directory = parent / f"{_boot()}-{key}"
        with self._lock:
            if reason := self._refused.get(key):
                raise FailedPrecondition(reason)
            if directory.is_dir():
                os.utime(directory)
                return directory
            if self._making is None:
                self._making = threading.Thread(
                    target=self._make, args=(directory, key, make), name="template", daemon=True
                )
                self._making.start()
        return None

    def wait(self, patience: float) -> None:
        """Wait until the one that is being made is made, or could not be; at most some seconds."""
        with self._lock:
            making = self._making
        if making is not None:
            making.join(patience)

    def discard(self, directory: Path) -> None:
        """Remove a template that does not do; VMs that run from it go on."""
        with self._lock:
            remove_tree(directory)

    def _make(self, directory: Path, key: str, make: Callable[[Path], None]) -> None:
        place, began = directory.with_suffix(".new"), time.monotonic()
        try:
            make_private_directory(place)
            make(place)
            with self._lock:
                place.rename(directory)
                _make_way(directory.parent)
            seconds = round(time.monotonic() - began, 1)
            log.info("template made", extra={"key": key, "seconds": seconds})
        except Exception as error:
            known = isinstance(error, VirtletError)
            self._refused[key] = str(error)[:1000] if known else type(error).__name__
            extra = {"key": key, "problem": str(error)}
            log.warning("no template", extra=extra, exc_info=not known)
        finally:
            remove_tree(place)
            with self._lock:
                self._making = None


def reconcile(parent: Path) -> None:
    """Remove what another boot, or a manager that was killed, has left."""
    for path in parent.iterdir():
        if not path.name.startswith(f"{_boot()}-") or path.suffix:
            remove_tree(path)


def _make_way(parent: Path) -> None:
    known = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in known[:-MOST]:
        remove_tree(path)


def _boot() -> str:
    """Begins the names of this boot's templates."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
