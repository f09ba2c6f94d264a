"""Reading what a command in the guest prints, while it prints."""

import contextlib

from virtlet.errors import VirtletError
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.deadline import Deadline, TimeUp
from virtlet.plugins.guest_agent.link import AgentError
from virtlet.plugins.guest_agent.scripts import READS

FEW, MANY = 16 << 10, 256 << 10
"""Bytes of a read: the agent clears as much memory for each, so it is little while little comes;
and a long answer keeps the other commands of the VM waiting."""


class Output:
    """One stream of a command, as `scripts.RUN` leaves it in files: NAME.0, NAME.1 and so on.

    Args:
        agent: the guest's.
        path: of the files, without the number.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        self._agent = agent
        self._path = path
        self._part = 0
        self._handle: int | None = None
        self._next: int | None = None
        self._seen = 0
        """Bytes of this part."""
        self._count = FEW
        self._ack: int | None = None

    @property
    def begun(self) -> bool:
        """Whether the command has been seen to have its streams."""
        return self._handle is not None

    def read(self, deadline: Deadline) -> bytes:
        """What was printed since the last time; b"" for nothing.

        Errors are those of `Link.call`, but for AgentError.
        """
        if self._handle is None:
            self._handle = self._opened(f"{self._path}.{self._part}", "r", deadline)
        while self._handle is not None:
            data = self._agent.read_file(self._handle, self._count, deadline)
            if data:
                self._seen += len(data)
                self._count = MANY if len(data) == self._count else FEW
                return data
            if self._next is not None:
                # The next part was there before we looked once more: this one is complete.
                self._advance(deadline)
            elif self._seen >= READS:
                self._next = self._opened(f"{self._path}.{self._part + 1}", "r", deadline)
                if self._next is None:
                    break
            else:
                break
        return b""

    def _advance(self, deadline: Deadline) -> None:
        if self._handle is not None:
            self._agent.close_file(self._handle, deadline)
        self._handle, self._next = self._next, None
        self._part += 1
        self._seen = 0
        if self._ack is None:
            self._ack = self._opened(f"{self._path}.ack", "r+", deadline)
        if self._ack is not None:
            self._agent.write_file(self._ack, b"\n", deadline)

    def _opened(self, path: str, mode: str, deadline: Deadline) -> int | None:
        try:
            return self._agent.open_file(path, mode, deadline)
        except AgentError:
            return None

    def close(self, deadline: Deadline) -> None:
        """Close the agent's handles."""
        for handle in (self._handle, self._next, self._ack):
            if handle is not None:
                with contextlib.suppress(AgentError, VirtletError, TimeUp):
                    self._agent.close_file(handle, deadline)
        self._handle = self._next = self._ack = None
