"""Hook implementations of commands through the guest agent, with their setting."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import ExecSession, GuestCommand
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings, integer
from virtlet.model.vm import Machine
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.answers import ReplyBudget
from virtlet.plugins.guest_agent.command import CapturedSession
from virtlet.plugins.guest_agent.live import LiveSession
from virtlet.plugins.guest_agent.scripts import as_list, environment_of
from virtlet.plugins.guest_agent.waiting import BOOT_LIMIT, Boot

GUEST_AGENT_TIMEOUT: Option[int] = Option(
    field="guestAgentTimeout",
    flag="--guest-agent-timeout",
    env="VIRTLET_GUEST_AGENT_TIMEOUT",
    kind=integer(1, 86400),
    default="300",
    help="seconds that a guest may take to boot until its agent answers and its seed is applied: "
    "so long a command without a time limit, as a postStart hook is, waits for it, and so long "
    "after the VM's creation an exec probe that meets a booting guest does not count as failed",
    mappable=True,
)


LARGE_REPLIES = 128 << 20
"""Bytes that long texts in the answers of all guests may take together, beside half a MiB of each:
as much as four commands can print."""


class Agents:
    """Keeps one Agent per VM while the VM runs.

    Args:
        boot_limit: seconds a guest may take to boot.
    """

    def __init__(self, boot_limit: float = BOOT_LIMIT) -> None:
        self._boot_limit = boot_limit
        self._lock = threading.Lock()
        self._agents: dict[str, Agent] = {}
        self._budget = ReplyBudget(LARGE_REPLIES)

    def of(self, machine: Machine, socket: Path) -> Agent:
        """The agent of a VM, at that socket."""
        with self._lock:
            agent = self._agents.get(machine.vm.id)
            if agent is None:
                boot = Boot(self._boot_limit, machine.vm.created_at)
                agent = Agent(socket, machine.vm.name, self._budget, boot, vm_id=machine.vm.id)
                self._agents[machine.vm.id] = agent
            return agent

    def forget(self, vm_id: str) -> None:
        """Close the connection to a VM that has ended; idempotent."""
        with self._lock:
            agent = self._agents.pop(vm_id, None)
        if agent is not None:
            agent.close()

    def close(self) -> None:
        """Close all connections."""
        for vm_id in tuple(self._agents):
            self.forget(vm_id)


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

    @hookimpl
    def virtlet_guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession | None:
        """Prepare to run a command; the guest is asked only when it runs."""
        vm = machine.vm
        if machine.agent_socket is None:
            raise FailedPrecondition(
                f"VM {vm.name} has no channel for a guest agent, which commands need: its "
                "handler's flavor says `guest_agent: false`"
            )
        agent = self._agents.of(machine, machine.agent_socket)
        environment = environment_of(vm.config, command.environment, tty=command.tty)
        if command.captured and not command.stdin and not command.tty:
            return CapturedSession(
                agent, command.argv, tuple(as_list(environment)), early=command.early
            )
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
