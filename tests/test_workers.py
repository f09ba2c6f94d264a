"""Workers run when woken and when their time comes; back-offs grow; work is done in order."""

import math
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from virtlet import threads
from virtlet.errors import Unavailable
from virtlet.threads import BackOff, OrderedExecutor, Worker

LIMIT = 30.0


class Counted:
    """Work that tells of each of its runs."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self._answers = list(answers)
        self._ran = threading.Semaphore(0)
        self.runs = 0

    def __call__(self) -> float | None:
        self.runs += 1
        self._ran.release()
        answer = self._answers.pop(0) if self._answers else math.inf
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ran(self) -> bool:
        """Wait for one more run."""
        return self._ran.acquire(timeout=LIMIT)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_back_off_grows_to_its_cap_and_begins_again_after_a_success() -> None:
    back_off = BackOff(1.0, 5.0, jitter=0.0)
    assert [back_off.pause() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    back_off.reset()
    assert back_off.pause() == 1.0


def test_jitter_shortens_pauses_within_its_bound_and_differs() -> None:
    pauses = [BackOff(1.0, 5.0, jitter=0.5).pause() for _ in range(50)]
    assert all(0.5 <= pause <= 1.0 for pause in pauses)
    assert len(set(pauses)) > 1


def test_a_worker_runs_at_its_time_and_when_woken_and_stops() -> None:
    work = Counted(0.0, math.inf, math.inf)
    worker = Worker("test", work)
    worker.wake()  # not started: nothing happens
    worker.start()
    assert work.ran()
    assert work.ran()
    worker.wake()
    assert work.ran()
    worker.stop()
    worker.stop()
    worker.wake()
    assert work.runs == 3
    assert not worker.running


def test_a_worker_can_be_started_again_and_started_twice() -> None:
    work = Counted()
    worker = Worker("test", work)
    for _ in range(2):
        worker.start()
        worker.start()
        assert work.ran()
        worker.stop()
    assert work.runs == 2


def test_an_error_is_logged_and_the_work_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    work = Counted(ValueError("broken"), math.inf)
    worker = Worker("frail", work, back_off=BackOff(0.001, 0.001))
    worker.start()
    assert work.ran()
    assert work.ran()
    worker.stop()
    assert "frail failed" in caplog.text
    assert "broken" in caplog.text


def test_work_that_is_over_ends_the_thread() -> None:
    worker = Worker("test", Counted(None))
    worker.start()
    for thread in threading.enumerate():
        if thread.name == "test":
            thread.join(LIMIT)
    assert not worker.running


def test_a_worker_that_drains_runs_once_more_before_its_end() -> None:
    seen: list[bool] = []

    def work() -> float:
        seen.append(worker.stopping)
        return math.inf

    worker = Worker("test", work, drain=True)
    worker.start(math.inf)
    worker.stop()
    assert seen == [True]


def test_files_wake_a_worker_and_are_named(pipe: tuple[int, int]) -> None:
    seen: list[list[tuple[int, int]]] = []
    ready = threading.Event()

    def work() -> float:
        worker.files = {pipe[0]: select.POLLIN}
        seen.append(worker.ready)
        if worker.ready:
            os.read(pipe[0], 1)
            ready.set()
        return math.inf

    worker = Worker("test", work)
    worker.start()
    os.write(pipe[1], b"x")
    assert ready.wait(LIMIT)
    worker.stop()
    assert [(pipe[0], select.POLLIN)] in seen


def test_a_file_that_cannot_be_waited_for_does_not_end_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[dict[int, int]] = []
    twice = threading.Event()

    def work() -> float:
        seen.append(worker.files)
        if len(seen) == 1:
            worker.files = {-1: select.POLLIN}
        else:
            twice.set()
        return math.inf

    worker = Worker("test", work)
    worker.start()
    assert twice.wait(LIMIT)
    worker.stop()
    assert seen == [{}, {}]
    assert "cannot wait for its files" in caplog.text


def test_calls_run_on_the_thread_and_raise_what_they_raise() -> None:
    worker = Worker("caller", Counted())
    with pytest.raises(Unavailable, match="not running"):
        worker.call(threading.current_thread)
    worker.start()
    assert worker.call(threading.current_thread).name == "caller"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0)
    worker.stop()


def test_a_call_that_waits_when_the_worker_stops_is_refused() -> None:
    began, go_on = threading.Event(), threading.Event()

    def hang() -> float:
        began.set()
        go_on.wait(LIMIT)
        return math.inf

    worker = Worker("test", hang)
    worker.start()
    assert began.wait(LIMIT)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.call, threading.current_thread)
        while worker._calls.empty():
            pass
        worker.stop(0.0)
        go_on.set()
        with pytest.raises(Unavailable, match="does not answer"):
            waiting.result(LIMIT)


def test_descriptors_of_stopped_workers_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        worker = Worker("test", Counted())
        worker.start()
        worker.stop()
    assert len(os.listdir("/proc/self/fd")) == before


def test_long_and_past_times_suit_poll() -> None:
    assert threads._milliseconds(math.inf) is None
    assert threads._milliseconds(-math.inf) == 0
    assert threads._milliseconds(1e12) == 86_400_000


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(4)
    yield executor
    executor.shutdown()


def test_the_work_of_a_key_is_done_in_its_order_and_one_at_a_time(
    executor: ThreadPoolExecutor,
) -> None:
    in_order, done = OrderedExecutor(executor), []
    for number in range(200):

        def work(number: int = number) -> None:
            time.sleep(random.random() / 1000)
            done.append(number)

        in_order.submit("a", work)
    finished = threading.Event()
    in_order.submit("a", finished.set)
    assert finished.wait(20)
    assert done == list(range(200))


def test_work_of_one_key_that_takes_long_does_not_hold_up_another(
    executor: ThreadPoolExecutor,
) -> None:
    in_order, release, done = OrderedExecutor(executor), threading.Event(), threading.Event()

    def wait() -> None:
        release.wait(20)

    for _ in range(10):
        in_order.submit("slow", wait)
    in_order.submit("quick", done.set)
    assert done.wait(5)
    release.set()


def test_a_key_can_be_used_again_when_its_work_is_done(executor: ThreadPoolExecutor) -> None:
    in_order = OrderedExecutor(executor)
    for _ in range(200):
        done = threading.Event()
        in_order.submit("a", done.set)
        assert done.wait(5)
