"""What is asked of an agent, with types.

Source of names and meanings: QEMU's "QEMU Guest Agent Protocol Reference"; checked against
qemu-guest-agent 10.
"""

import base64
import contextlib
import logging
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from virtlet.errors import FailedPrecondition, Unavailable, VirtletError
from virtlet.plugins.guest_agent import scripts
from virtlet.plugins.guest_agent.answers import Data, ReplyBudget, data_of
from virtlet.plugins.guest_agent.link import LARGEST_REPLY, SMALL_REPLY, AgentError, Link
from virtlet.plugins.guest_agent.scripts import SCRIPT_ENVIRONMENT
from virtlet.plugins.guest_agent.waiting import Boot, Deadline, TimeUp, polling

log = logging.getLogger(__name__)

SHELL = "/bin/sh"
KILL_WAIT = 10.0
"""Seconds for killing a command and clearing up after it; what does not succeed in time is done
when the VM's next command starts."""
SETTLE_WAIT = 3.0
"""Seconds for an agent to show that it is there for killing at all: a wedged guest is to make
probes fail at their time and not much later."""
REAP_WAIT = 2.0
"""Seconds for a killed process to end."""
LONGEST_PAUSE = 0.25
"""Seconds between looks at a command that runs."""


@frozen
class Ended:
    """How a process in the guest ended, and what it printed."""

    exit_code: int
    """128 + N after signal N."""
    output: Data = field(repr=False)
    errors: Data = field(repr=False)


class Forgotten(Unavailable):
    """The agent does not know a process of ours: the guest or the agent has started again."""


class NotStarted(Exception):
    """The guest cannot start a program; the text says why."""


class Agent:
    """One VM's agent, for any number of threads.

    Methods raise what `Link.call` raises.
    """

    def __init__(
        self,
        path: Path,
        vm_name: str,
        budget: ReplyBudget,
        boot: Boot | None = None,
        *,
        vm_id: str = "",
    ) -> None:
        self._link = Link(path, vm_name, budget)
        self.boot = boot or Boot()
        self._unkilled: set[int] = set()
        self.vm_name = vm_name
        # For log lines, to which the manager adds the names of an id.
        self._about = {"vm": vm_id} if vm_id else {"vm_name": vm_name}
        self.has_setsid = True
        """False once the guest has turned out to have no `setsid`."""
        self.token = secrets.token_hex(4)
        """Begins the names of all our sessions' files: others there are a dead manager's."""
        self.left_files: set[str] = set()
        """Names of our sessions whose files could not be removed yet."""

    def silence(self) -> str:
        """What to say when no agent answers."""
        return self._link.silence()

    @property
    def answered(self) -> bool:
        """Whether anybody has ever answered."""
        return self._link.answered

    def close(self) -> None:
        """Close the connection for good."""
        self._link.close()

    def await_boot(self, deadline: Deadline, *, configured: bool = True) -> None:
        """Wait until the guest answers and, where it can tell, has applied its seed.

        Args:
            deadline: how long the caller waits.
            configured: whether to wait for the seed.

        Raises:
            TimeUp, CallerGone, Unavailable: as for `Link.call`; with TimeUp either may be missing.
        """
        self._link.settle(deadline)
        pace = polling(1.0)
        while configured and not self.boot.configured:
            try:
                found = self.run_script(scripts.CONFIGURED, (), deadline).exit_code
            except FailedPrecondition:  # it cannot tell; what is to run finds out by itself
                found = 0
            if found != scripts.NOT_CONFIGURED:
                self.boot.configured = True
            elif self.boot.over:
                log.warning("guest not configured in time", extra=self._about)
                self.boot.configured = True
            else:
                deadline.pause(pace.pause())

    # Processes

    def start(
        self,
        argv: Sequence[str],
        environment: Iterable[str],
        deadline: Deadline,
        *,
        stdin: bytes | None = None,
        capture: bool = False,
    ) -> int:
        """Start a program.

        Args:
            argv: the program, searched for in the agent's own PATH, and its arguments.
            environment: all of it, `NAME=value`.
            deadline: how long the caller waits for that.
            stdin: its input; None for none.
            capture: whether to keep its output, up to 16 MiB of each stream, until its end.

        Returns:
            Its process id, for `ended`.

        Raises:
            NotStarted: there is no such program, or it cannot be run.
        """
        arguments: dict[str, object] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "env": list(environment),
            "capture-output": capture,
        }
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        try:
            answer = self._link.call("guest-exec", arguments, deadline)
        except AgentError as error:
            raise NotStarted(error.text) from None
        return _number(answer, "pid")

    def ended(self, pid: int, deadline: Deadline, *, limit: int = SMALL_REPLY) -> Ended | None:
        """How a process ended; None while it runs. The agent forgets it with that.

        Args:
            pid: from `start`.
            deadline: how long the caller waits for the answer.
            limit: bytes of the largest answer to expect.

        Raises:
            Forgotten: the agent does not know it any more.
        """
        try:
            answer = self._link.call("guest-exec-status", {"pid": pid}, deadline, limit=limit)
        except AgentError:
            raise Forgotten(
                f"the guest agent of VM {self.vm_name} was started again while the command ran: "
                "how it ended is not known"
            ) from None
        if not isinstance(answer, dict) or not answer.get("exited"):
            return None
        signal = answer.get("signal")
        code = 128 + signal if isinstance(signal, int) else answer.get("exitcode")
        return Ended(
            code if isinstance(code, int) and 0 <= code <= 255 else 255,
            data_of(answer.get("out-data"), "out-data"),
            data_of(answer.get("err-data"), "err-data"),
        )

    def run_script(
        self, script: str, arguments: Sequence[str], deadline: Deadline, *, stdin: bytes = b""
    ) -> Ended:
        """Run a short script of ours to its end."""
        argv = (SHELL, "-c", script, "sh", *arguments)
        try:
            pid = self.start(argv, SCRIPT_ENVIRONMENT, deadline, stdin=stdin, capture=True)
        except NotStarted as error:
            raise FailedPrecondition(
                f"VM {self.vm_name} has no {SHELL}, which commands need there: {error}"
            ) from None
        pace = polling(LONGEST_PAUSE)
        while (ended := self.ended(pid, deadline)) is None:
            deadline.pause(pace.pause())
        return ended

    # Killing

    @property
    def owing(self) -> bool:
        """Whether a program may have started whose caller did not wait to be told."""
        return self._link.owing

    def kill(self, *pids: int) -> bool:
        """Kill processes, all they started and all of their sessions.

        Returns:
            Whether that is done; else it is done before the VM's next command, because the agent
            does not answer now.
        """
        self._unkilled.update(pids)
        deadline = Deadline(KILL_WAIT)
        try:
            self._link.settle(deadline.within(SETTLE_WAIT))
            self.kill_left(deadline)
        except (TimeUp, VirtletError):
            log.warning("commands not killed yet", extra={**self._about, "pids": pids})
            return False
        for pid in pids:
            self._reap(pid, deadline.within(REAP_WAIT))
        return True

    def kill_left(self, deadline: Deadline) -> None:
        """Kill what could not be killed before."""
        self._link.settle(deadline)
        self._unkilled |= self._link.take_late()
        if not self._unkilled:
            return
        doomed = tuple(self._unkilled)
        # Only what the agent still has as a child is surely ours: numbers are used again.
        running = [str(pid) for pid in doomed if self._runs(pid, deadline)]
        if running:
            self.run_script(scripts.KILL, running, deadline)
        self._unkilled.difference_update(doomed)

    def _runs(self, pid: int, deadline: Deadline) -> bool:
        try:
            return self.ended(pid, deadline, limit=LARGEST_REPLY) is None
        except Forgotten:
            return False

    def _reap(self, pid: int, deadline: Deadline) -> None:
        """Let the agent forget a process that is killed, and what it printed."""
        pace = polling(LONGEST_PAUSE)
        # It may take its time: a process that waits for a dead disk ends when the disk answers.
        with contextlib.suppress(TimeUp, VirtletError):
            while self._runs(pid, deadline):
                deadline.pause(pace.pause())

    # Files

    def open_file(self, path: str, mode: str, deadline: Deadline) -> int:
        """Open a file of the guest.

        Args:
            path: of the file.
            mode: as for C's fopen.
            deadline: how long the caller waits.

        Returns:
            A handle.

        Raises:
            AgentError: it cannot be opened.
        """
        answer = self._link.call("guest-file-open", {"path": path, "mode": mode}, deadline)
        if not isinstance(answer, int):
            raise Unavailable(f"the guest agent of VM {self.vm_name} answers nonsense")
        return answer

    def read_file(self, handle: int, count: int, deadline: Deadline) -> bytes:
        """The next up to `count` bytes; b"" at the end as it is now."""
        arguments = {"handle": handle, "count": count}
        limit = SMALL_REPLY + 2 * count
        answer = self._link.call("guest-file-read", arguments, deadline, limit=limit)
        data = answer.get("buf-b64") if isinstance(answer, dict) else None
        return data_of(data, "buf-b64").whole()

    def write_file(self, handle: int, data: bytes, deadline: Deadline) -> None:
        """Write a little at once."""
        content = base64.b64encode(data).decode()
        self._link.call("guest-file-write", {"handle": handle, "buf-b64": content}, deadline)
        self._link.call("guest-file-flush", {"handle": handle}, deadline)

    def close_file(self, handle: int, deadline: Deadline) -> None:
        """Close a handle."""
        self._link.call("guest-file-close", {"handle": handle}, deadline)


def _number(answer: Any, name: str) -> int:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, int):
        raise Unavailable(f"the guest agent answers without a {name}")
    return value
