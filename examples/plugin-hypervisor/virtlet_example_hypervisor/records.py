"""What outlives the manager of each VM: how it is started, how it ended, what its QEMU said."""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from attrs import asdict, evolve, field, frozen

from virtlet.api import VmExit, make_private_directory, remove_file, write_atomically

_TAIL = 600
"""Bytes of a log that are shown."""


@frozen(kw_only=True)
class Record:
    """A defined VM."""

    argv: list[str]
    environment: dict[str, str] = field(repr=False)
    """Holds the one-time token that vmwrapper shows."""
    sockets: str
    """Directory of the emulator's sockets."""
    started: bool = False
    exit: VmExit | None = None


class Records:
    """A file and a log for each VM, below the plugin's own directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Read what an earlier manager wrote."""
        make_private_directory(self._directory)
        for path in self._directory.glob("*.json"):
            known = json.loads(path.read_bytes())
            ended = known.pop("exit")
            self._records[path.stem] = Record(**known, exit=VmExit(**ended) if ended else None)

    def all(self) -> Mapping[str, Record]:
        """All, by VM id."""
        return self._records.copy()

    def put(self, vm_id: str, record: Record) -> None:
        """Write one."""
        with self._lock:
            self._put(vm_id, record)

    def end(self, vm_id: str, code: int, reason: str, message: str) -> None:
        """Write how a VM ended, if it has run; the first word on it stands."""
        now = time.time_ns()
        ended = VmExit(exit_code=code, reason=reason, message=message, finished_at=now)
        with self._lock:
            record = self._records.get(vm_id)
            if record is not None and record.started and record.exit is None:
                self._put(vm_id, evolve(record, exit=ended))

    def remove(self, vm_id: str) -> None:
        """Forget one; idempotent."""
        with self._lock:
            self._records.pop(vm_id, None)
            remove_file(self._log(vm_id))
            remove_file(self._file(vm_id))

    def new_log(self, vm_id: str) -> BinaryIO:
        """An empty log, for root's eyes; the emulator has it open and cannot open it again."""
        write_atomically(self._log(vm_id), b"")
        return self._log(vm_id).open("ab")

    def last_words(self, vm_id: str) -> str:
        """The end of the log in one line."""
        try:
            with self._log(vm_id).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
                lines = file.read(_TAIL).decode(errors="replace").splitlines()
        except OSError:
            lines = []
        return "; ".join(lines) or "it said nothing"

    def _put(self, vm_id: str, record: Record) -> None:
        write_atomically(self._file(vm_id), json.dumps(asdict(record)).encode())
        self._records[vm_id] = record

    def _file(self, vm_id: str) -> Path:
        return self._directory / f"{vm_id}.json"

    def _log(self, vm_id: str) -> Path:
        return self._directory / f"{vm_id}.log"
