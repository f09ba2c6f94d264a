"""Moving a command's streams between its caller and the guest, on one thread."""

from attrs import define

from virtlet.model.execution import GuestCommand, GuestStreams
from virtlet.plugins.guest_agent import scripts
from virtlet.plugins.guest_agent.attempt import Attempt
from virtlet.plugins.guest_agent.deadline import Pace
from virtlet.plugins.guest_agent.input import LARGEST, Input
from virtlet.plugins.guest_agent.output import Output
from virtlet.plugins.guest_agent.terminal import END_OF_INPUT, Codec

GATHER = 0.02
"""Seconds that input which comes in pieces is waited for: a write costs far more than its bytes."""
LONGEST_PAUSE = 0.2
"""Seconds between looks at a command that prints nothing."""


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
        agent, deadline, pace = self.attempt.agent, self.attempt.deadline, Pace(LONGEST_PAUSE)
        awaited, codes = [pid, keeper], list[int]()
        while awaited:
            if self._move_output() | self._move_input() | self._resize():
                pace.changed()
            elif (ended := agent.ended(awaited[0], deadline)) is not None:
                self.attempt.processes.discard(awaited.pop(0))
                codes.append(ended.exit_code)
                pace.changed()
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
        # A FIFO that nobody has open forgets what is in it.
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
