"""The agent's socket: JSON documents, one a line.

QEMU listens and passes bytes to the guest, whether or not an agent reads them there; it serves
one client at a time. Source of the protocol: QEMU's documentation of the guest agent, "QEMU Guest
Agent Protocol Reference".
"""

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

from virtlet.errors import ResourceExhausted
from virtlet.plugins.guest_agent.waiting import Deadline

SMALL_REPLY = 1 << 20
"""Bytes of an answer up to which nobody counts."""
_RECEIVE = 1 << 18


class ChannelClosed(Exception):
    """The connection is gone, or what came over it makes no sense; the text says why."""


class ReplyBudget:
    """Memory for large answers of all guests together, so that no guest can use it up.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Reserve bytes.

        Raises:
            ResourceExhausted: there are no more.
        """
        with self._lock:
            if size > self._left:
                raise ResourceExhausted(
                    "the outputs of the commands that run in guests now are too large together: "
                    "try again"
                )
            self._left -= size

    def give_back(self, size: int) -> None:
        """Return what was reserved."""
        with self._lock:
            self._left += size


class Channel:
    """One connection to an agent's socket; used by one thread at a time, but for `close`."""

    def __init__(self, path: Path, budget: ReplyBudget, deadline: Deadline) -> None:
        """Connect.

        Raises:
            ChannelClosed: nobody listens there.
            TimeUp, CallerGone: as for `Deadline.slice`.
        """
        self._budget = budget
        self._taken = 0
        self._buffer = bytearray()
        self._searched = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(path, deadline)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, path: Path, deadline: Deadline) -> None:
        while True:
            self._socket.settimeout(deadline.slice())
            try:
                return self._socket.connect(str(path))
            except (BlockingIOError, TimeoutError):
                # Others wait for QEMU to take their connection.
                deadline.pause(0.05)
            except OSError as error:
                raise ChannelClosed(f"{path}: {error.strerror}") from None

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of it; errors as for the constructor, after which the connection is useless."""
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(deadline.slice())
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed(f"cannot write: {error.strerror}") from None

    def receive(self, limit: int, deadline: Deadline) -> bytes:
        """The next line, without its end; a part of one stays for the next call on errors.

        Args:
            limit: bytes; an honest agent's answer is not longer.
            deadline: how long to wait for the end of the line.

        Raises:
            ChannelClosed: the other side closed it, or the line is too long.
            ResourceExhausted: all guests' large answers together are too large.
            TimeUp, CallerGone: as for `Deadline.slice`.
        """
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > limit:
                raise ChannelClosed(f"the guest sent an answer of more than {limit} bytes")
            self._socket.settimeout(deadline.slice())
            try:
                data = self._socket.recv(_RECEIVE)
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed(f"cannot read: {error.strerror}") from None
            if not data:
                raise ChannelClosed("the machine has ended or closed the connection")
            self._account(len(self._buffer) + len(data))
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        self._account(len(self._buffer))
        return line

    def _account(self, size: int) -> None:
        needed = max(0, size - SMALL_REPLY)
        if needed > self._taken:
            self._budget.take(needed - self._taken)
        else:
            self._budget.give_back(self._taken - needed)
        self._taken = needed

    def wake(self) -> None:
        """Make whoever waits on the connection see it closed; from any thread."""
        with contextlib.suppress(OSError):  # it may be down already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._account(0)
        self._socket.close()


def document(data: bytes) -> dict[str, Any]:
    """A line as the JSON object it has to be.

    Raises:
        ChannelClosed: it is none.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ChannelClosed("the guest sent something that is no answer of an agent")
    return parsed
