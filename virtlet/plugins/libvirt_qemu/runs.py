"""What is remembered of each domain's runs: that it was started, and how it ended.

libvirt forgets why a domain ended when its driver restarts, and does not tell a guest that
panicked from an emulator that was killed. One small file per domain closes both gaps.
"""

import contextlib
import json
import threading
import time
from pathlib import Path

from attrs import asdict

from virtlet.host.files import remove_file, write_atomically
from virtlet.model.vm import VmExit

_POLL = 0.01


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
