"""Work in order."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from virtlet.core.ordered_executor import OrderedExecutor


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
