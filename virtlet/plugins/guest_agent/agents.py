"""The agents of all VMs that commands have run in."""

import threading
from pathlib import Path

from virtlet.model.vm import Machine
from virtlet.plugins.guest_agent.agent import Agent
from virtlet.plugins.guest_agent.boot import BOOT_LIMIT, Boot
from virtlet.plugins.guest_agent.channel import ReplyBudget

LARGE_REPLIES = 256 << 20
"""Bytes of large answers that may be under way at one time, of all guests together: six outputs
as large as they get."""


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
