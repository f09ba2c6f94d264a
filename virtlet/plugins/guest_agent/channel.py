"""The agent's socket: JSON documents, one a line.

QEMU listens and passes bytes to the guest, whether or not an agent reads them there; it serves
one client at a time. Source of the protocol: QEMU's documentation of the guest agent, "QEMU Guest
Agent Protocol Reference".
"""

import contextlib
import socket
from pathlib import Path
from typing import Any

from virtlet.plugins.guest_agent.answers import Answer, Nonsense, ReplyBudget
from virtlet.plugins.guest_agent.waiting import CallerGone, Deadline, TimeUp

_RECEIVE = 1 << 18


class ChannelClosed(Exception):
    """The connection is gone; the text says why."""


class Channel:
    """One connection to an agent's socket; used by one thread at a time, but for `close`."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        """Connect.

        Raises:
            ChannelClosed: no process listens there.
            TimeUp, CallerGone: as for `Deadline.slice`.
        """
        self._received = b""
        self._at = 0
        """Where in it begins what was not looked at yet."""
        self._answer: Answer | None = None
        """What has come of a line without its end."""
        self._skipping = False
        """Whether the rest of a line is to be skipped."""
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

    def receive(
        self, limit: int, deadline: Deadline, budget: ReplyBudget | None = None
    ) -> dict[str, Any]:
        """The next answer; a part of one stays for the next call on errors of the deadline.

        Args:
            limit: bytes; an honest agent's answer is not longer.
            deadline: how long to wait for the end of the line.
            budget: for long texts in it; None drops them.

        Raises:
            Nonsense: the line is no answer; the next call skips what is left of it.
            ChannelClosed: the other side closed it.
            ResourceExhausted: see `ReplyBudget`; the connection is useless after it.
            TimeUp, CallerGone: as for `Deadline.slice`.
        """
        try:
            while (answer := self._take_line(limit, budget)) is None:
                self._received, self._at = self._next_part(deadline), 0
        except (TimeUp, CallerGone):
            if self._answer is not None and self._answer.holds_data:
                # Its caller has left, and it would hold memory until its end comes.
                self._answer, self._skipping = None, True
            raise
        return answer.document()

    def _take_line(self, limit: int, budget: ReplyBudget | None) -> Answer | None:
        """Take what was received up to the end of a line; None when the end is not there."""
        while self._at < len(self._received):
            end = self._received.find(b"\n", self._at)
            part = self._received[self._at : end if end >= 0 else None]
            self._at = end + 1 if end >= 0 else len(self._received)
            if self._skipping:
                self._skipping = end < 0
                continue
            answer, self._answer = self._answer or Answer(limit, budget), None
            try:
                answer.feed(part)
            except Nonsense:
                self._skipping = end < 0
                raise
            if end >= 0:
                return answer
            self._answer = answer
        return None

    def _next_part(self, deadline: Deadline) -> bytes:
        while True:
            self._socket.settimeout(deadline.slice())
            try:
                data = self._socket.recv(_RECEIVE)
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed(f"cannot read: {error.strerror}") from None
            if not data:
                raise ChannelClosed("the machine has ended or closed the connection")
            return data

    def wake(self) -> None:
        """Have a thread that waits on the connection see it closed; from any thread."""
        with contextlib.suppress(OSError):  # it may be down already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._answer = None
        self._socket.close()
