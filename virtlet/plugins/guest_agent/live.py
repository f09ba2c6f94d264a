"""A command whose streams flow while it runs, through files of the guest.

The agent hands out the output of a command at its end only. So the command (`scripts.RUN`) writes
into FIFOs, out of which a program of ours (`scripts.KEEP`) lets it flow into files that the agent
reads as they grow, and `dd` writes the input into another FIFO.
"""

import secrets
from collections.abc import Mapping

from attrs import field, frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
from virtlet.plugins.guest_agent import scripts, terminal
from virtlet.plugins.guest_agent.agent import SHELL, Agent, NotStarted
from virtlet.plugins.guest_agent.command import Attempt
from virtlet.plugins.guest_agent.relay import Input, Output, Relay
from virtlet.plugins.guest_agent.scripts import PATH, SCRIPT_ENVIRONMENT, as_list
from virtlet.plugins.guest_agent.waiting import Deadline

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
