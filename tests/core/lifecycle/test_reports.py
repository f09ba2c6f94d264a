"""What hypervisors report is noted, in the order of the reports."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from tests.fakes.manager import Manager
from virtlet.core.lifecycle import exits
from virtlet.core.store.records import VmPhase
from virtlet.errors import ResourceExhausted
from virtlet.model.hypervisor import DomainState, Observation


class LastFirst(Executor):
    """Does what is submitted when it is told to, the last first: threads may do that, too."""

    def __init__(self) -> None:
        self._submitted: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self._submitted.append(lambda: fn(*args, **kwargs))
        return Future()

    def work_off(self) -> None:
        """Do it."""
        while self._submitted:
            self._submitted.pop()()


def test_a_pause_and_its_end_do_not_swap(manager: Manager) -> None:
    vm = manager.create(manager.run())
    manager.start(vm)
    threads = LastFirst()
    report = exits.reports(manager.context, threads)
    report(Observation(vm_id=vm, state=DomainState.PAUSED))
    report(Observation(vm_id=vm, state=DomainState.RUNNING))
    threads.work_off()
    assert not manager.vm(vm).paused
    report(Observation(vm_id=vm, state=DomainState.RUNNING))
    report(Observation(vm_id=vm, state=DomainState.PAUSED))
    threads.work_off()
    assert manager.vm(vm).paused


def test_an_end_that_cannot_be_written_is_written_as_soon_as_it_can(manager: Manager) -> None:
    vm = manager.create(manager.run())
    manager.start(vm)
    manager.at["vm-exited:before-commit"] = ResourceExhausted("the disk is full")
    with ThreadPoolExecutor(1) as threads:
        exits.reports(manager.context, threads)(Observation(vm_id=vm, state=DomainState.STOPPED))
    assert manager.vm(vm).phase is VmPhase.EXITED


def test_a_store_that_cannot_be_written_does_not_hold_up_the_end(manager: Manager) -> None:
    vm = manager.create(manager.run())
    manager.start(vm)
    manager.store.close()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        exits.reports(manager.context, threads)(Observation(vm_id=vm, state=DomainState.PAUSED))
        time.sleep(0.5)
        manager.context.closing.set()
    assert time.monotonic() - started < 10
    assert not manager.vm(vm).paused
