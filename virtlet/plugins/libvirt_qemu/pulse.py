"""Whether a daemon still answers: one small call a second, on a connection of its own.

A socket that is closed tells of a daemon that died, not of one that hangs. libvirt's keep-alive
tells of both, but it ends the connection with all calls under way, so on a node that is merely
slow it has to be patient. The pulse only looks.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt

_INTERVAL = 1.0
_LATE = 3.0
"""Seconds without an answer after which the daemon counts as hanging."""


class Pulse:
    """Feels the pulse of one daemon.

    Args:
        connect: opens a connection.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._asked_at: float | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def hangs(self) -> bool:
        """Whether a question has been open for too long."""
        asked_at = self._asked_at
        return asked_at is not None and time.monotonic() - asked_at > _LATE

    def start(self) -> None:
        """Ask from now on."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="libvirt-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; idempotent. A question that is open is left to itself."""
        self._stopping.set()

    def _run(self) -> None:
        connection: Any = None
        while not self._stopping.wait(_INTERVAL):
            self._asked_at = time.monotonic()
            try:
                if connection is None:
                    connection = self._connect()
                # One of the calls that a daemon serves also while all its workers are busy.
                connection.getLibVersion()
            except libvirt.libvirtError:
                connection = None  # who is gone does not hang: others notice
            finally:
                self._asked_at = None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()
