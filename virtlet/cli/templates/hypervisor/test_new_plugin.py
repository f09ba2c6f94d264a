"""The hypervisor in memory."""

from pathlib import Path

import pytest
from new_plugin import NewPlugin, Plugin

from virtlet.api import DomainState, FailedPrecondition, Machine, NotFound, Observation
from virtlet.testing import check_plugin, make_machine


class Running(NewPlugin):
    """Starts VMs that need no process."""

    def _run(self, machine: Machine) -> None:
        pass


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_a_vm_s_life_is_told(tmp_path: Path) -> None:
    hypervisor, machine = Running(), make_machine(tmp_path)
    told: list[Observation] = []
    hypervisor.subscribe(told.append)
    hypervisor.define(machine, None)
    hypervisor.start(machine.vm.id)
    hypervisor.stop(machine.vm.id)
    hypervisor.stop(machine.vm.id)
    assert [seen.state for seen in told] == [DomainState.RUNNING, DomainState.STOPPED]
    hypervisor.remove(machine.vm.id)
    hypervisor.remove(machine.vm.id)
    assert hypervisor.list() == {}
    with pytest.raises(NotFound):
        hypervisor.start(machine.vm.id)


def test_nothing_starts_yet(tmp_path: Path) -> None:
    """Write _run and _end, then boot a guest here, with the fixture `virtlet_guest`."""
    machine, hypervisor = make_machine(tmp_path), NewPlugin()
    hypervisor.define(machine, None)
    with pytest.raises(FailedPrecondition, match="NewPlugin._run"):
        hypervisor.start(machine.vm.id)
