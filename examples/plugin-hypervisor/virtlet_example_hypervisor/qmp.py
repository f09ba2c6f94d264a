"""QMP, by which QEMU is controlled: JSON documents, one a line.

Source: "QEMU Machine Protocol Specification" in QEMU's documentation.
"""

import contextlib
import json
import select
import socket
import time
from pathlib import Path
from typing import Any

from virtlet.api import FailedPrecondition, Unavailable

PATIENCE = 5.0
"""Seconds an emulator may take to answer."""
_LONGEST = 1 << 20
"""Bytes of a document; no honest emulator sends a longer one."""


class Qmp:
    """A connection to an emulator; a caller that waits for an answer stops waiting when it ends.

    Args:
        path: the socket it listens at.
        emulator: a pidfd of it; the caller's.
        patience: seconds until it serves the connection.

    Raises:
        Unavailable: it does not answer; so do all methods.
    """

    def __init__(self, path: Path, emulator: int, patience: float = PATIENCE) -> None:
        self._emulator = emulator
        self._buffer = b""
        self._event = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.connect(str(path))
            self._receive(patience)
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"QEMU does not answer: {error.strerror or error}") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> Any:
        """Have a command done, and return what it returns.

        Raises:
            FailedPrecondition: QEMU refuses it.
        """
        document = json.dumps({"execute": command, "arguments": arguments})
        with contextlib.suppress(OSError):  # which `_receive` hears of, too
            self._socket.sendall(document.encode() + b"\n")
        end = time.monotonic() + PATIENCE
        # An emulator that a guest has taken over may send events without end.
        while (left := end - time.monotonic()) > 0:
            message = self._receive(left)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise FailedPrecondition(f"QEMU refuses {command}: {str(message['error'])[:300]}")
            self._event = True
        raise Unavailable("QEMU does not answer in time")

    def wait_for_event(self) -> None:
        """Return once something has happened since the last call; commands tell what."""
        while not self._event:
            self._event = "event" in self._receive(None)
        self._event = False

    def hang_up(self) -> None:
        """Have the thread that waits raise Unavailable."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _receive(self, patience: float | None) -> dict[str, Any]:
        """The next document."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._emulator, select.POLLIN)
        while b"\n" not in self._buffer:
            ready = dict(poll.poll(None if patience is None else patience * 1000))
            if self._socket.fileno() not in ready:
                what = "has ended" if ready else "does not answer in time"
                raise Unavailable(f"QEMU {what}")
            try:
                chunk = self._socket.recv(65536)
            except OSError:
                chunk = b""
            self._buffer += chunk
            if not chunk or len(self._buffer) > _LONGEST:
                raise Unavailable("QEMU has hung up")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Unavailable("QEMU does not speak QMP")
        return message
