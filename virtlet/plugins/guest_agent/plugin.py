"""Hook implementations of commands through the guest agent."""

from collections.abc import Sequence
from typing import Any

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import ExecSession, GuestCommand
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings
from virtlet.model.vm import Machine
from virtlet.plugins.guest_agent.agents import Agents
from virtlet.plugins.guest_agent.captured import CapturedSession
from virtlet.plugins.guest_agent.environment import as_list, environment_of
from virtlet.plugins.guest_agent.live import LiveSession
from virtlet.plugins.guest_agent.options import GUEST_AGENT_TIMEOUT


class Plugin:
    """Runs commands by the QEMU guest agent in the guest."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._agents = Agents()

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """How long guests may take to boot."""
        return (GUEST_AGENT_TIMEOUT,)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take that."""
        self._agents = Agents(float(settings[GUEST_AGENT_TIMEOUT]))

    @hookimpl(trylast=True)
    def virtlet_guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession | None:
        """Prepare to run a command; the guest is asked only when it runs."""
        vm = machine.vm
        if machine.guest_agent is None:
            raise FailedPrecondition(
                f"VM {vm.name} has no channel for a guest agent, which commands need: its "
                "handler's flavor says `guest_agent: false`"
            )
        agent = self._agents.of(machine, machine.guest_agent)
        environment = environment_of(vm.config, command.environment, tty=command.tty)
        if command.captured and not command.stdin and not command.tty:
            return CapturedSession(agent, command.argv, tuple(as_list(environment)))
        return LiveSession(agent, command, environment)

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        """Let go of a VM that has ended."""
        if event.kind in (EventKind.VM_STOPPED, EventKind.VM_REMOVED):
            self._agents.forget(event.subject)

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Close all connections; commands that run are killed before by their callers' leaving."""
        self._agents.close()
