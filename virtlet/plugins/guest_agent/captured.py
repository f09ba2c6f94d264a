"""A command whose output is wanted at its end: kept by the agent, fetched in one answer."""

from attrs import field, frozen

from virtlet.model.execution import ExecSession, GuestStreams
from virtlet.plugins.guest_agent.agent import LONGEST_PAUSE, Agent, Ended, NotStarted
from virtlet.plugins.guest_agent.attempt import Attempt, may_signal_its_group
from virtlet.plugins.guest_agent.deadline import Pace
from virtlet.plugins.guest_agent.link import LARGEST_REPLY


@frozen
class CapturedSession(ExecSession):
    """Without input; up to 16 MiB of each output stream, the agent's limit."""

    agent: Agent
    argv: tuple[str, ...]
    environment: tuple[str, ...] = field(repr=False)

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        """See `ExecSession.run`."""
        attempt = Attempt(self.agent, self.argv[0], streams, timeout)
        return attempt.run(lambda attempt: self._run(attempt, streams))

    def _run(self, attempt: Attempt, streams: GuestStreams) -> int:
        own_session = may_signal_its_group(self.argv[0])
        try:
            pid = attempt.start(self.argv, self.environment, own_session=own_session, capture=True)
        except NotStarted as error:
            raise attempt.refused(str(error)) from None
        ended = self._wait(attempt, pid)
        attempt.processes.clear()
        if own_session and (why := _setsid_failed(ended)):
            raise attempt.refused(why)
        if ended.output:
            streams.write_output(ended.output)
        if ended.errors:
            streams.write_error(ended.errors)
        return ended.exit_code

    def _wait(self, attempt: Attempt, pid: int) -> Ended:
        pace, deadline = Pace(LONGEST_PAUSE), attempt.deadline
        while (ended := self.agent.ended(pid, deadline, limit=LARGEST_REPLY)) is None:
            deadline.pause(pace.pause())
        return ended


def _setsid_failed(ended: Ended) -> str:
    """Why `setsid` could not start the program, or ""."""
    line = ended.errors.decode(errors="replace").strip()
    if ended.exit_code in (126, 127) and line.startswith("setsid: ") and "\n" not in line:
        return line.removeprefix("setsid: ")
    return ""
