"""Running a command inside a guest."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class GuestCommand:
    """What to run in the guest."""

    argv: tuple[str, ...]
    """Program and arguments; never a shell line."""
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    stdin: bool = False
    """Whether there is input."""
    tty: bool = False
    """Whether the command wants a terminal of its own."""
    captured: bool = False
    """Whether the caller takes the output only at the end (ExecSync), so that a shorter way than
    streaming it will do."""
    early: bool = False
    """Whether it runs as soon as somebody in the guest answers, and does not wait until the guest
    has applied its seed."""


class GuestStreams(Protocol):
    """The caller's ends of a command's streams; all methods may block, on the session's thread."""

    def read_input(self, limit: int, timeout: float) -> bytes | None:
        """Up to `limit` bytes of input; b"" at its end; None when none came within `timeout` s."""

    def write_output(self, data: bytes) -> None:
        """Hand on what the command printed."""

    def write_error(self, data: bytes) -> None:
        """Hand on what the command printed on standard error; with a tty it is never called."""

    def terminal_size(self) -> tuple[int, int] | None:
        """The caller's terminal (columns, rows) if it has changed since the last look."""

    @property
    def gone(self) -> bool:
        """Whether the caller has gone away: the command is to be killed."""


class ExecSession(ABC):
    """A command that is about to run in a guest."""

    @abstractmethod
    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        """Run it to its end.

        Args:
            streams: the caller's.
            timeout: seconds in all, waiting for a booting guest included; None for no limit.

        Returns:
            Its exit code; 128 + N after signal N.

        Raises:
            DeadlineExceeded: the time was up; the guest's process is killed.
            GuestNotReady: the guest still boots, and the time was up or it takes too long; what
                calls probes does not count that as failed.
            Unavailable: nobody in the guest answers; the message says how to get one who does.
            FailedPrecondition: the guest cannot do it (no terminal helper, no such program).
        """
