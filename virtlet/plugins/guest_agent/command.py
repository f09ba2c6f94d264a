"""How every command starts and what its caller is told when it fails; and commands whose output is
wanted at their end, which the agent keeps and hands over in one answer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from attrs import field, frozen

from virtlet.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GuestNotReady,
    Unavailable,
    VirtletError,
)
from virtlet.model.execution import ExecSession, GuestStreams
from virtlet.plugins.guest_agent.agent import KILL_WAIT, LONGEST_PAUSE, Agent, Ended, NotStarted
from virtlet.plugins.guest_agent.link import LARGEST_REPLY, AgentError
from virtlet.plugins.guest_agent.waiting import CallerGone, Deadline, TimeUp, polling

KILLED = 128 + 9
"""Exit code of a command whose caller went away; no caller sees it."""

_SYSTEM_DIRECTORIES = {".", "/bin", "/sbin", "/usr/bin", "/usr/sbin"}
_SHELLS = {"ash", "bash", "busybox", "csh", "dash", "env", "fish", "ksh", "sh", "su", "sudo", "zsh"}


class Attempt:
    """One run of one command.

    Args:
        agent: the guest's.
        program: the command's, for messages; its arguments may hold secrets.
        streams: the caller's.
        timeout: seconds; None for no limit.
        patience: seconds for a guest that boots, where there is no limit; None for as long as it
            may take.
        early: whether it runs before the guest has applied its seed.
    """

    def __init__(
        self,
        agent: Agent,
        program: str,
        streams: GuestStreams,
        timeout: float | None,
        *,
        patience: float | None = None,
        early: bool = False,
    ) -> None:
        self.agent = agent
        limit = agent.boot.limit
        self._patience = limit if patience is None else min(patience, limit)
        self._early = early
        self.program = program
        self.timeout = timeout
        self.deadline = Deadline(timeout, lambda: streams.gone)
        self.processes: set[int] = set()
        """What runs in the guest and is killed when the attempt ends."""
        self._tidy: Callable[[Deadline], None] | None = None

    def at_end(self, tidy: Callable[[Deadline], None]) -> None:
        """Have something done after the work and the killing, if the agent answers then."""
        self._tidy = tidy

    @property
    def untidy(self) -> bool:
        """Whether that has not been done."""
        return self._tidy is not None

    def run(self, work: Callable[["Attempt"], int]) -> int:
        """Do the work; whatever goes wrong, nothing of it goes on running in the guest.

        Raises:
            DeadlineExceeded, Unavailable, FailedPrecondition: as for `ExecSession.run`.
        """
        try:
            with self._cleared_up():
                self._await_boot()
                self.agent.kill_left(self.deadline)
                return work(self)
        except CallerGone:
            return KILLED
        except TimeUp:
            raise DeadlineExceeded(self._too_late()) from None
        except AgentError as error:
            raise Unavailable(
                f"the guest agent of VM {self.agent.vm_name} cannot run {self.program!r}: {error}"
            ) from None

    def _await_boot(self) -> None:
        """Wait for the guest for as long as the caller has time, else as `patience` says.

        Raises:
            GuestNotReady: that was not enough. A kubelet's probe counts it as no failure, and
                shows it, which is right for a guest that may still be booting.
        """
        agent, limited = self.agent, self.deadline.limited
        began = time.monotonic()
        try:
            agent.await_boot(
                self.deadline if limited else self.deadline.within(self._patience),
                configured=not self._early,
            )
        except TimeUp:
            if limited and (agent.boot.configured or agent.boot.over):
                raise
            if agent.answered and not limited:
                return
            what = agent.silence()
            if agent.answered:
                what = f"VM {agent.vm_name} is not configured yet: cloud-init goes on in it"
            waited, whole = round(time.monotonic() - began, 1), self._patience >= agent.boot.limit
            advice = agent.boot.advice(waited, limited=limited, whole=whole)
            raise GuestNotReady(f"{what}; {advice}") from None

    @contextmanager
    def _cleared_up(self) -> Iterator[None]:
        answering, gone = True, False
        try:
            yield
        except CallerGone:
            gone = True
            raise
        finally:
            # A program whose caller left before its start may run: the VM's next command would kill
            # it, but when callers go away there may be none.
            if self.processes or (gone and self.agent.owing):
                answering = self.agent.kill(*self.processes)
            if answering and self._tidy is not None:
                with suppress(TimeUp, AgentError, VirtletError):
                    self._tidy(Deadline(KILL_WAIT))
                    self._tidy = None

    def _too_late(self) -> str:
        if not self.processes:
            return f"no time left: {self.agent.silence()}"
        return (
            f"{self.program!r} did not end within {self.timeout:g} seconds in VM "
            f"{self.agent.vm_name} and is killed"
        )

    def start(
        self, argv: Sequence[str], environment: Iterable[str], *, own_session: bool, capture: bool
    ) -> int:
        """Start a program, in a session and process group of its own where that is asked for and
        the guest can do it.

        Raises:
            NotStarted: there is no such program.
        """
        environment = tuple(environment)
        if own_session and self.agent.has_setsid:
            try:
                return self._started(("setsid", *argv), environment, capture)
            except NotStarted:
                self.agent.has_setsid = False
        return self._started(argv, environment, capture)

    def _started(self, argv: Sequence[str], environment: Sequence[str], capture: bool) -> int:
        pid = self.agent.start(argv, environment, self.deadline, capture=capture)
        self.processes.add(pid)
        return pid

    def refused(self, why: str) -> FailedPrecondition:
        """The error for a program that cannot be started."""
        return FailedPrecondition(f"cannot run {self.program!r} in VM {self.agent.vm_name}: {why}")


def may_signal_its_group(program: str) -> bool:
    """Whether a program could kill its own process group, which is the agent's if it has none.

    Shells do that (`kill 0`), and a program outside the system's directories may be a script.
    The others are spared the detour over `setsid`: it makes `true` a third slower.
    """
    path = PurePosixPath(program)
    return path.name in _SHELLS or str(path.parent) not in _SYSTEM_DIRECTORIES


@frozen
class CapturedSession(ExecSession):
    """Without input; up to 16 MiB of each output stream, the agent's limit."""

    agent: Agent
    argv: tuple[str, ...]
    environment: tuple[str, ...] = field(repr=False)
    early: bool = False

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        """See `ExecSession.run`."""
        attempt = Attempt(self.agent, self.argv[0], streams, timeout, early=self.early)
        return attempt.run(lambda attempt: self._run(attempt, streams))

    def _run(self, attempt: Attempt, streams: GuestStreams) -> int:
        own_session = may_signal_its_group(self.argv[0])
        try:
            pid = attempt.start(self.argv, self.environment, own_session=own_session, capture=True)
        except NotStarted as error:
            raise attempt.refused(str(error)) from None
        ended = self._wait(attempt, pid)
        attempt.processes.clear()
        errors = ended.errors.pieces()
        first = next(errors, b"")
        if own_session and (why := _setsid_failed(ended.exit_code, first)):
            raise attempt.refused(why)
        for piece in ended.output.pieces():
            streams.write_output(piece)
        while first:
            streams.write_error(first)
            first = next(errors, b"")
        return ended.exit_code

    def _wait(self, attempt: Attempt, pid: int) -> Ended:
        pace, deadline = polling(LONGEST_PAUSE), attempt.deadline
        while (ended := self.agent.ended(pid, deadline, limit=LARGEST_REPLY)) is None:
            deadline.pause(pace.pause())
        return ended


def _setsid_failed(code: int, errors: bytes) -> str:
    """Why `setsid` could not start the program, or ""."""
    line = errors.decode(errors="replace").strip()
    if code in (126, 127) and line.startswith("setsid: ") and "\n" not in line:
        return line.removeprefix("setsid: ")
    return ""
