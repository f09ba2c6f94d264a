"""Ending a connection from another thread, before the library has an answer to close."""

import contextlib
import socket
import threading
from typing import Any

_CONNECTED = "connection.connect_tcp.complete"
"""See "Trace" in httpx's documentation of request extensions."""


class Connection:
    """The connection of the moment of one download.

    A read that waits for a server wakes when the socket is shut down. What is kept is a duplicate
    of the socket: the library wraps its own for TLS, and closes it when it likes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._ended = False

    def trace(self, name: str, details: dict[str, Any]) -> None:
        """Take over the socket of a connection that was just made; an httpx trace function."""
        if name != _CONNECTED:
            return
        duplicate: socket.socket = details["return_value"].get_extra_info("socket").dup()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = duplicate
            if self._ended:
                _shut(duplicate)

    def end(self) -> None:
        """End this connection, and each that is made later, at once."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                _shut(self._socket)

    def close(self) -> None:
        """Let go of the socket, whose request is over; the next one gets another."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # The server was quicker.
        connection.shutdown(socket.SHUT_RDWR)
