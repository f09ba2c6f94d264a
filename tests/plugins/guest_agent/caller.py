"""The caller's ends of a command's streams, and what became of the command."""

import time
from collections.abc import Mapping, Sequence

from attrs import frozen

from virtlet.model.execution import GuestCommand
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.command import CapturedSession
from virtlet.plugins.guest_agent.live import LiveSession
from virtlet.plugins.guest_agent.scripts import PATH, as_list

ENVIRONMENT: Mapping[str, str] = {"PATH": PATH, "HOME": "/root"}


class Caller:
    """Sends pieces and notes what comes and when.

    Each piece comes with what it waits for: seconds, or something in the output after what was
    waited for before.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[float | bytes, bytes]] = (),
        *,
        sizes: Sequence[tuple[int, int]] = (),
        leaves_after: float | None = None,
        leaves_at: bytes | None = None,
        open_end: bool = False,
    ) -> None:
        """`leaves_at` is output after which the caller goes away; `open_end` never ends."""
        self._pieces = [*pieces]
        self._sizes = [*sizes]
        self._leaves_after = leaves_after
        self._leaves_at = leaves_at
        self._open_end = open_end
        self._since = self._began = time.monotonic()
        self._heard = 0
        self.output = b""
        self.errors = b""
        self.arrivals: list[tuple[float, bytes]] = []

    def read_input(self, limit: int, timeout: float) -> bytes | None:
        if not self._pieces:
            if self._open_end:
                time.sleep(timeout)
                return None
            return b""
        awaited, data = self._pieces[0]
        if not self._has_come(awaited):
            time.sleep(min(0.02, timeout))
            return None
        self._pieces[0] = (0, data[limit:])
        if not data[limit:]:
            del self._pieces[0]
            self._since = time.monotonic()
        return data[:limit]

    def _has_come(self, awaited: float | bytes) -> bool:
        if not isinstance(awaited, bytes):
            return time.monotonic() >= self._since + awaited
        place = self.output.find(awaited, self._heard)
        if place >= 0:
            self._heard = place + len(awaited)
        return place >= 0

    def write_output(self, data: bytes) -> None:
        self.output += data
        self.arrivals.append((time.monotonic() - self._began, data))

    def write_error(self, data: bytes) -> None:
        self.errors += data

    def terminal_size(self) -> tuple[int, int] | None:
        return self._sizes.pop(0) if self._sizes else None

    @property
    def gone(self) -> bool:
        if self._leaves_at is not None and self._leaves_at in self.output:
            return True
        return self._leaves_after is not None and (
            time.monotonic() - self._began > self._leaves_after
        )


@frozen
class Result:
    """How a command ended."""

    code: int
    output: bytes
    errors: bytes


def capture(agent: Agent, *argv: str, timeout: float | None = 60) -> Result:
    """Run a command for its output at the end."""
    caller = Caller()
    code = CapturedSession(agent, argv, tuple(as_list(ENVIRONMENT))).run(caller, timeout)
    return Result(code, caller.output, caller.errors)


def stream(
    agent: Agent,
    *argv: str,
    caller: Caller | None = None,
    stdin: bool = False,
    tty: bool = False,
    timeout: float | None = 60,
) -> Result:
    """Run a command with streams."""
    caller = caller or Caller()
    environment = {**ENVIRONMENT, "TERM": "xterm"} if tty else ENVIRONMENT
    session = LiveSession(agent, GuestCommand(argv=argv, stdin=stdin, tty=tty), environment)
    code = session.run(caller, timeout)
    return Result(code, caller.output, caller.errors)
