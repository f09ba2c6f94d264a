"""A run of the tests that is interrupted takes away what it made, in every process of it.

pytest tears its fixtures down at Ctrl-C, but a second signal breaks that off, SIGTERM is no Ctrl-C,
and xdist gives its workers ten seconds, after which they leave all they have: managers, VMs,
namespaces. So the first signal alone counts, in every process, and xdist waits until its workers
have torn down.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from signal import Signals
from typing import TextIO

import pytest

from virtlet.cli.ending import end_at_signals, ignore_from_now_on

ENVIRONMENT = "VIRTLET_TEST_WORKERS"
"""A directory with a file for each worker, named by its process and locked until it is done."""
TEARDOWN = 120.0
"""Seconds that all teardowns may take together; nothing is waited for beyond that."""


class Interrupts:
    """The plugin, in the controller and in every worker; without xdist it is both."""

    def __init__(self, config: pytest.Config) -> None:
        self._worker = hasattr(config, "workerinput")
        self._lock: TextIO | None = None
        self._watched = end_at_signals(lambda number: KeyboardInterrupt(Signals(number).name))
        if not self._worker:
            os.environ[ENVIRONMENT] = tempfile.mkdtemp(prefix="virtlet-workers-")
        self._directory = Path(os.environ[ENVIRONMENT])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """From now on there may be something to tear down."""
        if self._worker:
            self._lock = (self._directory / str(os.getpid())).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Generator[None]:
        """Nothing breaks the teardown off, and xdist ends its workers when they have had theirs."""
        ignore_from_now_on(self._watched)
        if not self._worker and exitstatus == pytest.ExitCode.INTERRUPTED:
            self._await_workers()
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.close()
            if not self._worker:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _await_workers(self) -> None:
        deadline = time.monotonic() + TEARDOWN
        for file in self._directory.iterdir():
            if not _done(file):
                with contextlib.suppress(ProcessLookupError):
                    # It has had a signal already where a terminal sent it one. Not SIGINT, which is
                    # ignored where the run was started in the background.
                    os.kill(int(file.name), Signals.SIGTERM)
        for file in self._directory.iterdir():
            while not _done(file) and time.monotonic() < deadline:
                time.sleep(0.05)


def _done(file: Path) -> bool:
    """Whether a worker has torn down, or is gone."""
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
