"""A command whose streams flow while it runs, through files of the guest.

The agent hands out the output of a command at its end only. So the command (`scripts.RUN`) writes
into FIFOs, out of which a program of ours (`scripts.KEEP`) lets it flow into files that the agent
reads as they grow, and `dd` writes the input into another FIFO.
"""

import contextlib
import secrets
from collections.abc import Mapping

from attrs import define, field, frozen

from virtlet.errors import FailedPrecondition, Unavailable, VirtletError
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
from virtlet.plugins.guest_agent import scripts, terminal
from virtlet.plugins.guest_agent.agent import SHELL, Agent, NotStarted
from virtlet.plugins.guest_agent.command import Attempt
from virtlet.plugins.guest_agent.link import AgentError
from virtlet.plugins.guest_agent.scripts import PATH, READS, SCRIPT_ENVIRONMENT, as_list
from virtlet.plugins.guest_agent.terminal import END_OF_INPUT, Codec
from virtlet.plugins.guest_agent.waiting import Deadline, TimeUp, polling

LARGEST = 512 << 10
"""Bytes of one write."""

FEW, MANY = 16 << 10, 256 << 10
"""Bytes of a read: the agent clears as much memory for each, so it is little while little comes;
and a long answer keeps the other commands of the VM waiting."""
GATHER = 0.02
"""Seconds that input which comes in pieces is waited for: a write costs far more than its bytes."""
LONGEST_PAUSE = 0.2
"""Seconds between looks at a command that prints nothing."""


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


@define
class Relay:
    """The streams of a command that runs.

    Args:
        attempt: whose processes and deadline these are.
        command: what it wants of its streams.
        streams: the caller's.
        directory: the session's, in the guest.
        input: the command's.
        outputs: the command's output, and its error output unless it has a terminal.
        codec: what its helper speaks.
    """

    attempt: Attempt
    command: GuestCommand
    streams: GuestStreams
    directory: str
    input: Input
    outputs: list[Output]
    codec: Codec
    _typed: bytes = b""
    """From the caller, and not yet written."""
    _at_end: bool = False
    """Whether the caller has nothing more to send."""
    _finished: bool = False
    """Whether the command has been told so."""
    _size: tuple[int, int] | None = None
    """A terminal size that the guest does not know yet."""

    def __attrs_post_init__(self) -> None:
        self._at_end = self._finished = not self.command.stdin

    def run(self, pid: int, keeper: int) -> int:
        """Move what comes either way until the command has ended and its output too.

        Args:
            pid: the command, or the helper that gives it a terminal.
            keeper: takes its output.

        Returns:
            The command's exit code.
        """
        agent, deadline, pace = self.attempt.agent, self.attempt.deadline, polling(LONGEST_PAUSE)
        awaited, codes = [pid, keeper], list[int]()
        while awaited:
            if self._move_output() | self._move_input() | self._resize():
                pace.reset()
            elif (ended := agent.ended(awaited[0], deadline)) is not None:
                self.attempt.processes.discard(awaited.pop(0))
                codes.append(ended.exit_code)
                pace.reset()
                continue
            self._listen(pace.pause())
        while self._move_output():
            pass
        return codes[1] if self.command.tty else codes[0]

    def _move_output(self) -> bool:
        moved = False
        sinks = (self.streams.write_output, self.streams.write_error)
        for output, write in zip(self.outputs, sinks, strict=False):
            if data := output.read(self.attempt.deadline):
                moved = True
                if plain := self.codec.decode(data):
                    write(plain)
        return moved

    def _move_input(self) -> bool:
        deadline = self.attempt.deadline
        if self.input.writer is not None:
            writer = self.input.writer
            if self.input.busy(deadline):
                return False
            self.attempt.processes.discard(writer)
        if self._typed:
            self.attempt.processes.add(self.input.write(self.codec.encode(self._typed), deadline))
            self._typed = b""
            return True
        # A FIFO that no process has open loses what is in it.
        if self._at_end and not self._finished and self.outputs[0].begun:
            self._finished = True
            if self.command.tty:
                self._typed = END_OF_INPUT
            else:
                self.input.finish(deadline)
            return True
        return False

    def _listen(self, seconds: float) -> None:
        """Wait for input, or just wait. What comes together is written together."""
        if self._at_end or len(self._typed) >= LARGEST:
            self.attempt.deadline.pause(seconds)
            return
        self.attempt.deadline.slice()
        data = self.streams.read_input(LARGEST - len(self._typed), seconds)
        while data:
            self._typed += data
            if (room := LARGEST - len(self._typed)) <= 0:
                return
            data = self.streams.read_input(room, 0 if self.command.tty else GATHER)
        if data == b"":
            self._at_end = True

    def _resize(self) -> bool:
        if not self.command.tty:
            return False
        self._size = self.streams.terminal_size() or self._size
        if self._size is None or not self.outputs[0].begun:
            return False
        columns, rows = map(str, self._size)
        ended = self.attempt.agent.run_script(
            scripts.RESIZE, (self.directory, columns, rows), self.attempt.deadline
        )
        if ended.exit_code == scripts.NO_TERMINAL_YET:
            return False
        self._size = None
        return True


BASE = "/run/virtlet-exec"
"""Directory of the guest for all sessions: in memory, and root's alone."""
PERSONS_PATIENCE = 60.0
"""Seconds that a guest which boots is waited for: somebody sits before the terminal."""


@frozen
class LiveSession(ExecSession):
    """With streams, and with a terminal where the guest can make one."""

    agent: Agent
    command: GuestCommand
    environment: Mapping[str, str] = field(repr=False)

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        """See `ExecSession.run`."""
        program = self.command.argv[0]
        attempt = Attempt(self.agent, program, streams, timeout, patience=PERSONS_PATIENCE)
        name = f"{self.agent.token}-{secrets.token_hex(4)}"
        try:
            return attempt.run(lambda attempt: self._run(attempt, streams, name))
        finally:
            if attempt.untidy:
                self.agent.left_files.add(name)

    def _run(self, attempt: Attempt, streams: GuestStreams, name: str) -> int:
        directory = f"{BASE}/{name}"
        helper = self._prepare(attempt, name, streams.terminal_size())
        outputs = [Output(self.agent, f"{directory}/out")]
        if not self.command.tty:
            outputs.append(Output(self.agent, f"{directory}/err"))
        source = Input(self.agent, f"{directory}/in")
        attempt.at_end(lambda deadline: self._tidy(name, source, outputs, deadline))
        if self.command.stdin and not self.command.tty:
            source.hold(attempt.deadline)
        try:
            keeper = self._keep(attempt, directory)
            pid = self._start(attempt, directory, helper)
        except NotStarted as error:
            raise attempt.refused(str(error)) from None
        codec = terminal.codec_of(helper)
        relay = Relay(attempt, self.command, streams, directory, source, outputs, codec)
        return relay.run(pid, keeper)

    def _prepare(self, attempt: Attempt, name: str, size: tuple[int, int] | None) -> str:
        """Make the session's files; returns the terminal's helper, "" without a terminal."""
        path, tty = self.environment["PATH"], self.command.tty
        if self.command.argv[0].startswith("-"):  # the shell would take it for an option
            raise attempt.refused("there is no such program")
        left = tuple(self.agent.left_files)
        kind = "tty" if tty else "pipe"
        arguments = (BASE, self.agent.token, name, path, self.command.argv[0], kind, *left)
        launcher = terminal.launcher(f"{BASE}/{name}", self.command.argv, path, size)
        ended = self.agent.run_script(
            scripts.PREPARE, arguments, attempt.deadline, stdin=launcher if tty else b""
        )
        match ended.exit_code:
            case 0:
                self.agent.left_files.difference_update(left)
                return ended.output.whole().decode(errors="replace").strip()
            case scripts.NOT_FOUND:
                raise attempt.refused("there is no such program")
            case scripts.NOT_EXECUTABLE:
                raise attempt.refused("it is not executable")
            case scripts.NO_HELPER:
                raise FailedPrecondition(
                    f"VM {self.agent.vm_name} has no program that makes a terminal: run the "
                    "command without -t, or install `script` (package bsdutils or util-linux) or "
                    "python3 in the image"
                )
        text = ended.errors.whole().decode(errors="replace").strip()[-300:]
        raise attempt.refused(f"no place for its streams in {BASE} of the guest ({text})")

    def _keep(self, attempt: Attempt, directory: str) -> int:
        script = (SHELL, f"{directory}/keep", directory, "tty" if self.command.tty else "pipe")
        return attempt.start(script, SCRIPT_ENVIRONMENT, own_session=True, capture=False)

    def _start(self, attempt: Attempt, directory: str, helper: str) -> int:
        argv, path = self.command.argv, self.environment["PATH"]
        source = "pipe" if self.command.stdin else "null"
        if self.command.tty:
            # The launcher sets the command's own PATH: the helper is the system's.
            argv, path, source = terminal.helper_command(helper, directory), PATH, "hold"
        script = (SHELL, "-c", scripts.RUN, "sh", directory, source, path, *argv)
        environment = as_list({**self.environment, "PATH": PATH})
        return attempt.start(script, environment, own_session=True, capture=False)

    def _tidy(self, name: str, source: Input, outputs: list[Output], deadline: Deadline) -> None:
        source.close(deadline)
        for output in outputs:
            output.close(deadline)
        self.agent.run_script(scripts.REMOVE, (f"{BASE}/{name}",), deadline)
