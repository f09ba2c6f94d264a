"""A running VM whose consumption the test chooses."""

import os
from pathlib import Path

from tests.fakes.consumption import MeasuredHypervisor
from tests.fakes.manager import Manager, Node
from virtlet.core.metrics.sampler import Sampler
from virtlet.model.stats import DomainStats


class Measured:
    """A VM on a manager with a sampler; its emulator is the test's own process.

    Args:
        root: the node's directory.
    """

    def __init__(self, root: Path) -> None:
        node = Node(root)
        self.hypervisor = node.hypervisor = MeasuredHypervisor(node.faults)
        self.manager = Manager(node)
        self.pod = self.manager.run()
        self.vm = self.start("web")
        self.sampler = Sampler(self.manager.context)
        self.sampler.start()

    def start(self, name: str) -> str:
        """Start a VM in a pod of that name; returns its id."""
        pod = self.pod if name == "web" else self.manager.run(name)
        vm = self.manager.create(pod)
        self.manager.start(vm)
        self.consume(vm, cpu_time=5_000_000_000, balloon=1 << 30)
        return vm

    def consume(self, vm: str, **values: int) -> None:
        """Choose what a VM has consumed."""
        self.hypervisor.consumed[vm] = DomainStats(vm_id=vm, pid=os.getpid(), **values)

    def close(self) -> None:
        self.hypervisor.answers.set()
        self.sampler.stop()
        self.manager.close()
