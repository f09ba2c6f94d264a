"""How the end of a VM becomes known."""

import time
from pathlib import Path

import pytest

from tests.core.lifecycle.conftest import Managers
from tests.fakes.manager import Manager, Node
from tests.polling import until
from virtlet.core.disk_reserve import DiskReserve
from virtlet.core.lifecycle import exits
from virtlet.core.store.records import VmPhase
from virtlet.errors import FailedPrecondition
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.vm import VmExit


class CountingReserve(DiskReserve):
    """Counts how often space was released."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, directory / "db", size=0)
        self.released = 0

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def vm(manager: Manager) -> str:
    """A VM that runs."""
    vm_id = manager.create(manager.run())
    manager.start(vm_id)
    return vm_id


def _exit(manager: Manager, vm_id: str) -> VmExit:
    ended = manager.vm(vm_id).exit
    assert ended is not None
    return ended


def test_an_end_that_the_hypervisor_tells_keeps_its_reason_and_ends_after_the_start(
    manager: Manager, node: Node, vm: str
) -> None:
    node.hypervisor.end(
        vm, VmExit(exit_code=137, reason="OOMKilled", message="out of memory", finished_at=1)
    )
    ended = _exit(manager, vm)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert ended.finished_at >= manager.vm(vm).started_at


def test_an_end_told_twice_keeps_what_was_said_first(manager: Manager, node: Node, vm: str) -> None:
    node.hypervisor.end(vm, VmExit(exit_code=0, reason="Completed"))
    node.hypervisor.end(vm, VmExit(exit_code=1, reason="Error"))
    assert _exit(manager, vm).reason == "Completed"


@pytest.mark.parametrize("state", [None, DomainState.DEFINED])
def test_a_domain_that_is_gone_or_never_ran_is_lost_when_looked_at_again(
    manager: Manager, node: Node, vm: str, state: DomainState | None
) -> None:
    if state is None:
        del node.hypervisor.domains[vm]
    else:
        node.hypervisor.domains[vm] = state
    exits.look_again(manager.context, vm)
    assert _exit(manager, vm).reason == "Lost"


def test_a_paused_guest_is_running_and_paused_until_it_goes_on(manager: Manager, vm: str) -> None:
    exits.on_change(manager.context, Observation(vm_id=vm, state=DomainState.PAUSED))
    assert manager.vm(vm).paused
    exits.on_change(manager.context, Observation(vm_id=vm, state=DomainState.RUNNING))
    assert not manager.vm(vm).paused
    assert manager.vm(vm).phase is VmPhase.RUNNING


def test_what_a_hypervisor_has_to_say_is_told_to_the_owner_of_a_vm_that_runs(
    manager: Manager, vm: str
) -> None:
    seen = Observation(
        vm_id=vm,
        state=DomainState.RUNNING,
        notice="a disk has not grown: run the pod again",
        topic="DiskNotGrown",
    )
    exits.on_change(manager.context, seen)
    exits.on_change(manager.context, Observation(vm_id=vm, state=DomainState.STOPPED))
    exits.on_change(manager.context, seen)
    told = [e for e in manager.told.events if e.kind is EventKind.VM_NOTICE]
    assert [(e.reason, e.topic) for e in told] == [(seen.notice, "DiskNotGrown")]
    (log,) = (manager.node.root / "logs").rglob("*.log")
    assert f" stderr F [virtlet: {seen.notice}]\n" in log.read_text()


def test_reserved_space_is_released_for_ends_and_not_for_pauses(manager: Manager, vm: str) -> None:
    """A full disk pauses one VM after the other, and what one frees the next one writes."""
    reserve = CountingReserve(manager.node.root)
    manager.context.reserve = reserve
    for state in (DomainState.PAUSED, DomainState.RUNNING, DomainState.PAUSED):
        exits.on_change(manager.context, Observation(vm_id=vm, state=state))
    assert reserve.released == 0
    exits.on_change(manager.context, Observation(vm_id=vm, state=DomainState.STOPPED))
    assert reserve.released == 1


def test_a_report_of_a_vm_that_nobody_knows_changes_nothing(manager: Manager) -> None:
    exits.on_change(manager.context, Observation(vm_id="0" * 32, state=DomainState.STOPPED))
    exits.on_change(manager.context, Observation(vm_id="0" * 32, state=DomainState.PAUSED))
    assert not manager.store.vms
    assert manager.told.events == []


def test_the_last_words_are_in_the_log_before_the_end_is_told(
    manager: Manager, node: Node, vm: str
) -> None:
    console = manager.vm(vm).machine
    assert console is not None
    with console.console.output.open("ab") as file:
        file.write(b"good bye\n")
    node.hypervisor.end(vm, VmExit(exit_code=0, reason="Completed"))
    log = node.root / "logs" / "web" / "guest" / "0.log"
    assert log.read_text().endswith(" F good bye\n")


@pytest.fixture
def unwritable(node: Node, manager: Manager, vm: str) -> Path:
    """The log of the running VM, in whose place a directory is now; something was printed since."""
    log = node.root / "logs" / "web" / "guest" / "0.log"
    log.unlink()
    log.mkdir()
    machine = manager.vm(vm).machine
    assert machine is not None
    with machine.console.output.open("ab") as file:
        file.write(b"good bye\n")
    return log


def test_stopping_by_force_does_not_wait_for_a_log_that_cannot_be_written(
    manager: Manager, vm: str, unwritable: Path
) -> None:
    started = time.monotonic()
    manager.stop(vm, grace=0)
    assert time.monotonic() - started < 8, "a log is waited for for ten seconds"
    assert manager.vm(vm).phase is VmPhase.EXITED


def test_what_could_not_be_written_at_the_end_is_written_as_soon_as_it_can_be(
    manager: Manager, vm: str, unwritable: Path
) -> None:
    manager.stop(vm, grace=0)
    unwritable.rmdir()
    until(lambda: unwritable.exists() and unwritable.read_text().endswith(" F good bye\n"))


def test_a_restart_neither_waits_for_such_a_log_nor_forgets_it(
    managers: Managers, vm: str, unwritable: Path
) -> None:
    managers.now.stop(vm, grace=0)
    started = time.monotonic()
    managers.restart()
    assert time.monotonic() - started < 8, "a log is waited for for ten seconds"
    unwritable.rmdir()
    managers.restart()
    assert unwritable.read_text().endswith(" F good bye\n")


def test_a_start_whose_log_can_never_be_written_is_refused_and_leaves_nothing(
    manager: Manager, node: Node
) -> None:
    vm_id = manager.create(manager.run())
    (node.root / "logs" / "web" / "guest" / "0.log").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="ask for another log_path"):
        manager.start(vm_id)
    ended = _exit(manager, vm_id)
    assert (ended.reason, ended.exit_code) == ("StartError", 128)
    machine = manager.vm(vm_id).machine
    assert machine is not None
    assert not list(machine.console.output.parent.glob("console*"))
