"""A client of streaming URLs by WebSocket, in a node's network."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
)

_CLONE_NEWNET = 0x40000000
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


def dial(pid: int, host: str, port: int) -> socket.socket:
    """A TCP connection made in the network namespace of a process."""
    made: list[socket.socket | OSError] = []

    def work() -> None:
        # Only this short-lived thread changes its namespace; the socket stays in it.
        fd = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_connection((host, port), timeout=10))
        except OSError as error:
            made.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result = made[0]
    if isinstance(result, OSError):
        raise result
    return result


class Stream:
    """One exec, attach or port-forward connection; messages are a channel number and bytes.

    Args:
        pid: of a process in the network where the URL is meant.
        url: as the CRI gave it.
        protocol: WebSocket subprotocol.
    """

    def __init__(self, pid: int, url: str, protocol: str = "v4.channel.k8s.io") -> None:
        parts = urlsplit(url)
        self._socket = dial(pid, parts.hostname or "", parts.port or 80)
        self._ws = WSConnection(ConnectionType.CLIENT)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._ws_send(Request(host=parts.netloc, target=target, subprotocols=[protocol]))
        self.received: dict[int, bytes] = {}
        self.closed = False
        self._accepted = False
        while not self._accepted:
            self._read()

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel."""
        self._ws_send(BytesMessage(bytes((channel,)) + data))

    def until(self, channel: int, expected: bytes) -> bytes:
        """Read until a channel has had these bytes; returns all it had."""
        while expected not in self.received.get(channel, b""):
            assert not self.closed, self.received
            self._read()
        return self.received[channel]

    def to_end(self) -> dict[int, bytes]:
        """Read until the server closes; returns what each channel had."""
        while not self.closed:
            self._read()
        return self.received

    def close(self) -> None:
        """Cut the connection."""
        self._socket.close()

    def _ws_send(self, event: Request | BytesMessage | CloseConnection) -> None:
        self._socket.sendall(self._ws.send(event))

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            self.closed = True
            assert self._accepted
            return
        self._ws.receive_data(data)
        for event in self._ws.events():
            if isinstance(event, AcceptConnection):
                self._accepted = True
            elif isinstance(event, RejectConnection):
                raise AssertionError(f"rejected with {event.status_code}")
            elif isinstance(event, BytesMessage):
                self._message(bytes(event.data))
            elif isinstance(event, Ping):
                self._socket.sendall(self._ws.send(event.response()))
            elif isinstance(event, CloseConnection):
                self.closed = True

    def _message(self, data: bytes) -> None:
        if data:
            channel = data[0]
            self.received[channel] = self.received.get(channel, b"") + data[1:]
