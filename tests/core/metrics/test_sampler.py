"""The sampler: what it knows is true of the time it names, and nobody waits long for it."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.core.metrics.measured import Measured
from virtlet.core.metrics.sampler import AT_MOST_EVERY, PATIENCE, Sampler


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
    assert sample.cpu_time == 5_000_000_000
    assert sample.processes == 1
    assert sample.resident > sample.working_set > 0
    assert sample.balloon == 100 << 20
    assert sample.guest_unused is None


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
    with ThreadPoolExecutor(8) as askers:
        answers = list(askers.map(lambda _: measured.sampler.samples(), range(8)))
    assert PATIENCE * 0.9 < time.monotonic() - started < PATIENCE + 1
    for answer in answers:
        assert answer.vms[measured.vm] == known.vms[measured.vm]
        assert new not in answer.vms
    measured.hypervisor.answers.set()
    assert new in measured.sampler.samples().vms


def test_a_machine_whose_hypervisor_is_away_keeps_its_sample_with_its_time(
    measured: Measured,
) -> None:
    known = measured.sampler.samples()
    unknown = _new_look(measured)
    measured.hypervisor.away = "libvirt is away"
    samples = measured.sampler.samples()
    assert samples.taken > known.taken
    assert samples.vms == known.vms
    assert unknown not in samples.vms
    # The pod's network is not the hypervisor's: it is measured all the same.
    assert samples.pods[measured.pod].at > known.pods[measured.pod].at

    measured.hypervisor.away = ""
    measured.consume(measured.vm, cpu_time=6_000_000_000)
    time.sleep(AT_MOST_EVERY)
    samples = measured.sampler.samples()
    assert samples.vms[measured.vm].cpu_time == 6_000_000_000
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
    assert sample.cpu_time == known.cpu_time
    assert (sample.resident, sample.processes, sample.balloon) == (0, 0, None)
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
    assert measured.sampler.samples().vms[measured.vm].cpu_time == known.cpu_time


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
    before = measured.hypervisor.looks
    sampler = Sampler(measured.manager.context)
    sampler.start()
    deadline = time.monotonic() + 5
    while measured.hypervisor.looks == before and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    sampler.stop()
    assert measured.hypervisor.looks == before + 1
