"""The criproxy command as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import confined
from tests.polling import until

UNIT = Path(__file__).parents[3] / "deploy" / "criproxy" / "criproxy.service"


class ProxyProcess:
    """A running `criproxy`, with the restrictions of its systemd unit.

    Args:
        listen: its socket.
        args: further arguments.
        environment: variables beside ours.
    """

    def __init__(
        self, listen: Path, *args: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.listen = listen
        self.log = listen.with_suffix(".log")
        self._args = args
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ProxyProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> ProxyProcess:
        """Start it and wait until it listens."""
        argv = [sys.executable, confined.__file__, str(UNIT), sys.executable, "-m", "criproxy"]
        argv += ["--listen", str(self.listen), *self._args]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log, env=self._environment)
        marker = f"listening on {self.listen}"
        starts = self.log.read_text().count(marker)
        try:
            until(lambda: self.log.read_text().count(marker) > starts)
        except AssertionError:
            self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def rss(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Send a signal and wait; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGKILL)
