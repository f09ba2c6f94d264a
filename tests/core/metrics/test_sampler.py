"""The sampler: what it knows is true of the time it names, and nobody waits long for it."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from tests.core.metrics.measured import Measured
from tests.polling import until
from virtlet.core.metrics.sample import VmMemory
from virtlet.core.metrics.sampler import AT_MOST_EVERY, PATIENCE, Sampler
from virtlet.model.resources import Resources

MIB = 1 << 20


def _after_a_pause(measured: Measured) -> None:
    """Wait until a new VM is worth another look."""
    measured.sampler.samples()
    time.sleep(AT_MOST_EVERY + 0.05)


def _new_look(measured: Measured, name: str = "new") -> str:
    """Give the sampler a reason to look: a VM it does not know."""
    _after_a_pause(measured)
    return measured.start(name)


def test_a_running_machine_is_measured_by_its_emulator(measured: Measured) -> None:
    sample = measured.sampler.samples().vms[measured.vm]
    assert sample.cpu_time is not None
    assert sample.cpu_time >= 5_000_000_000
    assert sample.processes == 1
    assert sample.process is not None
    assert sample.process.resident > sample.process.file_backed > 0
    assert sample.memory.usage == sample.process.resident
    assert sample.memory.usage > sample.memory.working_set > 0
    assert sample.memory.cache is None
    assert sample.balloon == 1 << 30
    assert sample.guest_unused is None


def test_what_the_emulator_needs_beside_the_guests_ram_is_not_the_containers(
    measured: Measured,
) -> None:
    measured.sampler.samples()
    measured.consume(measured.vm, cpu_time=5_000_000_000, balloon=2 * MIB)
    time.sleep(AT_MOST_EVERY)
    measured.start("other")
    sample = measured.sampler.samples().vms[measured.vm]
    assert sample.process is not None
    assert sample.process.resident > 2 * MIB
    assert sample.memory == VmMemory(usage=2 * MIB, working_set=2 * MIB, rss=2 * MIB)


GUEST = {
    "cpu_time": 5_000_000_000,
    "balloon": 256 * MIB,
    "guest_available": 217 * MIB,
    "guest_unused": 100 * MIB,
    "guest_usable": 150 * MIB,
    "guest_caches": 60 * MIB,
    "guest_faults": 1000,
    "guest_major_faults": 10,
}


def test_a_guest_that_tells_uses_what_it_says_and_what_its_kernel_keeps(
    measured: Measured,
) -> None:
    measured.sampler.samples()
    measured.consume(measured.vm, **GUEST, guest_told_at=time.time_ns())
    _new_look(measured)
    sample = measured.sampler.samples().vms[measured.vm]
    assert sample.memory == VmMemory(
        usage=156 * MIB,
        working_set=106 * MIB,
        rss=96 * MIB,
        cache=60 * MIB,
        page_faults=1000,
        major_page_faults=10,
        by_guest=True,
    )
    assert sample.ram == 256 * MIB
    assert sample.memory_at == sample.at


def test_what_a_limit_leaves_to_the_emulator_is_in_use(measured: Measured) -> None:
    """A pod without overhead has guest and emulator within the container's limit."""
    measured.sampler.samples()
    measured.consume(measured.vm, **GUEST, guest_told_at=time.time_ns())
    limit = Resources(memory_limit=400 * MIB)
    measured.manager.store.change_vm(measured.vm, lambda record: evolve(record, resources=limit))
    _new_look(measured)
    memory = measured.sampler.samples().vms[measured.vm].memory
    assert (memory.usage, memory.working_set) == (300 * MIB, 250 * MIB)


def test_a_guest_that_has_stopped_to_tell_is_measured_by_its_emulator(measured: Measured) -> None:
    measured.sampler.samples()
    measured.consume(measured.vm, **GUEST, guest_told_at=time.time_ns() - 100 * 10**9)
    _new_look(measured)
    memory = measured.sampler.samples().vms[measured.vm].memory
    assert not memory.by_guest
    assert memory.usage > 0


def test_figures_move_between_two_questions_though_nobody_looks(measured: Measured) -> None:
    first = measured.sampler.samples().vms[measured.vm]
    measured.hypervisor.answers.clear()
    looks = measured.hypervisor.looks
    used = time.process_time()
    while time.process_time() - used < 0.1:
        pass
    second = measured.sampler.samples().vms[measured.vm]
    assert measured.hypervisor.looks == looks
    assert second.at > first.at
    assert first.cpu_time is not None
    assert second.cpu_time is not None
    assert second.cpu_time - first.cpu_time >= 80_000_000


def test_many_questions_at_once_are_answered_by_one_look(measured: Measured) -> None:
    new = _new_look(measured)
    measured.hypervisor.answers.clear()
    before = measured.hypervisor.looks
    with ThreadPoolExecutor(10) as askers:
        asked = [askers.submit(measured.sampler.samples) for _ in range(10)]
        time.sleep(0.2)
        measured.hypervisor.answers.set()
        assert all(new in answer.result().vms for answer in asked)
    assert measured.hypervisor.looks == before + 1


def test_a_hypervisor_that_hangs_holds_nobody_up_and_the_samples_of_before_are_told(
    measured: Measured,
) -> None:
    known = measured.sampler.samples()
    new = _new_look(measured)
    measured.hypervisor.answers.clear()
    started = time.monotonic()
    with ThreadPoolExecutor(16) as askers:
        answers = list(askers.map(lambda _: measured.sampler.samples(), range(16)))
    assert PATIENCE * 0.9 < time.monotonic() - started < 12 * PATIENCE
    for answer in answers:
        assert answer.taken == known.taken
        assert answer.vms[measured.vm].balloon == known.vms[measured.vm].balloon
        assert new not in answer.vms
    measured.hypervisor.answers.set()
    assert new in measured.sampler.samples().vms


def test_a_machine_whose_hypervisor_is_away_keeps_its_sample_with_its_time(
    measured: Measured,
) -> None:
    measured.sampler.samples()
    measured.consume(measured.vm, **GUEST, guest_told_at=time.time_ns())
    _new_look(measured, "other")
    known = measured.sampler.samples()
    unknown = _new_look(measured)
    measured.hypervisor.away = "libvirt is away"
    samples = measured.sampler.samples()
    assert samples.taken > known.taken
    assert samples.vms[measured.vm].memory == known.vms[measured.vm].memory
    # The kernel tells of the emulator all the same.
    assert samples.vms[measured.vm].at > known.vms[measured.vm].at
    assert unknown not in samples.vms
    # The pod's network is not the hypervisor's: it is measured all the same.
    assert samples.pods[measured.pod].at > known.pods[measured.pod].at

    measured.hypervisor.away = ""
    measured.consume(measured.vm, cpu_time=60_000_000_000)
    time.sleep(AT_MOST_EVERY)
    samples = measured.sampler.samples()
    assert samples.vms[measured.vm].cpu_time >= 60_000_000_000  # type: ignore[operator]
    assert samples.vms[measured.vm].at > known.vms[measured.vm].at
    assert unknown in samples.vms


def test_an_ended_machine_consumes_nothing_and_keeps_its_processor_time(
    measured: Measured,
) -> None:
    known = measured.sampler.samples().vms[measured.vm]
    measured.manager.stop(measured.vm)
    del measured.hypervisor.consumed[measured.vm]
    _new_look(measured)
    sample = measured.sampler.samples().vms[measured.vm]
    assert known.cpu_time is not None
    # It was read once more before the end.
    assert sample.cpu_time is not None
    assert sample.cpu_time >= known.cpu_time
    _new_look(measured)
    assert measured.sampler.samples().vms[measured.vm].cpu_time == sample.cpu_time
    assert (sample.memory, sample.processes, sample.balloon) == (VmMemory(), 0, None)
    assert sample.at > known.at


def test_an_ended_machine_that_a_new_manager_never_saw_run_has_no_processor_time(
    measured: Measured,
) -> None:
    measured.manager.stop(measured.vm)
    del measured.hypervisor.consumed[measured.vm]
    later = Sampler(measured.manager.context)
    later.start()
    sample = later.samples().vms[measured.vm]
    later.stop()
    assert sample.cpu_time is None
    assert sample.nano_cores == 0


def test_processor_time_does_not_go_back_when_the_hypervisor_says_less(
    measured: Measured,
) -> None:
    known = measured.sampler.samples().vms[measured.vm]
    measured.consume(measured.vm, cpu_time=1)
    _new_look(measured)
    seen = measured.sampler.samples().vms[measured.vm].cpu_time
    assert known.cpu_time is not None
    assert seen is not None
    assert 0 <= seen - known.cpu_time < 5_000_000_000


def test_a_look_that_fails_is_logged_and_the_next_one_is_made(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    _after_a_pause(measured)
    measured.manager.node.netns = Path("no\0path")
    measured.start("new")
    with caplog.at_level(logging.ERROR):
        assert measured.vm in measured.sampler.samples().vms
    assert "nothing measured" in caplog.text
    looks = measured.hypervisor.looks
    time.sleep(AT_MOST_EVERY)
    measured.sampler.samples()
    assert measured.hypervisor.looks > looks


def test_machines_that_run_already_are_measured_before_the_first_question(
    measured: Measured, tmp_path: Path
) -> None:
    measured.sampler.stop()  # It looks when it begins, too.
    before = measured.hypervisor.looks
    sampler = Sampler(measured.manager.context)
    sampler.start()
    until(lambda: measured.hypervisor.looks != before)
    sampler.stop()
    assert measured.hypervisor.looks == before + 1
