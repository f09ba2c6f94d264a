"""Writing to a command in the guest while it reads."""

import contextlib

from virtlet.errors import Unavailable, VirtletError
from virtlet.plugins.guest_agent.agent import Agent, NotStarted
from virtlet.plugins.guest_agent.deadline import Deadline, TimeUp
from virtlet.plugins.guest_agent.environment import SCRIPT_ENVIRONMENT
from virtlet.plugins.guest_agent.link import AgentError

LARGEST = 512 << 10
"""Bytes of one write."""


class Input:
    """A command's input: a FIFO, filled by one short-lived writer after the other.

    The writer, not the agent, waits for the command to read. The agent's handle keeps the FIFO
    open between writers.

    Args:
        agent: the guest's.
        path: of the FIFO.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        self._agent = agent
        self._path = path
        self._handle: int | None = None
        self.writer: int | None = None
        """The process that writes now."""

    def hold(self, deadline: Deadline) -> None:
        """Open the FIFO, so that it has no end until `finish`."""
        # Opened for both ways because a FIFO without a reader makes the agent wait.
        self._handle = self._agent.open_file(self._path, "r+", deadline)

    def busy(self, deadline: Deadline) -> bool:
        """Whether what was written last has not been read yet."""
        if self.writer is not None and self._agent.ended(self.writer, deadline) is not None:
            self.writer = None
        return self.writer is not None

    def write(self, data: bytes, deadline: Deadline) -> int:
        """Write up to `LARGEST` bytes; only when not busy. Returns the writing process."""
        argv = ("dd", f"of={self._path}", "bs=65536")
        try:
            self.writer = self._agent.start(argv, SCRIPT_ENVIRONMENT, deadline, stdin=data)
            return self.writer
        except NotStarted as error:
            raise Unavailable(
                f"cannot write to the command in VM {self._agent.vm_name}: {error}"
            ) from None

    def finish(self, deadline: Deadline) -> None:
        """Let the command see the end of its input; only when not busy."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._agent.close_file(handle, deadline)

    def close(self, deadline: Deadline) -> None:
        """As `finish`, whatever happens."""
        with contextlib.suppress(AgentError, VirtletError, TimeUp):
            self.finish(deadline)
