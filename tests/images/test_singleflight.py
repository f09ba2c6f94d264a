import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from virtlet.images.singleflight import Abandoned, SingleFlight


def yes() -> bool:
    return True


def test_everybody_gets_the_outcome_of_the_first() -> None:
    flights: SingleFlight[object] = SingleFlight()
    go = threading.Event()
    done = []

    def work(wanted: Callable[[], bool]) -> object:
        go.wait()
        done.append(1)
        return object()

    with ThreadPoolExecutor(5) as pool:
        results = [pool.submit(flights.run, "key", work, yes) for _ in range(5)]
        go.set()
        outcomes = {id(result.result()) for result in results}
    assert len(outcomes) == len(done)


def test_everybody_gets_the_error_of_the_first() -> None:
    flights: SingleFlight[None] = SingleFlight()
    started, go = threading.Event(), threading.Event()

    def work(wanted: Callable[[], bool]) -> None:
        started.set()
        go.wait()
        raise TimeoutError("too long")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "key", work, yes)
        started.wait()
        second = pool.submit(flights.run, "key", lambda _: None, yes)
        threading.Timer(0.3, go.set).start()
        for result in (first, second):
            with pytest.raises(TimeoutError, match="too long"):
                result.result()


def test_other_keys_and_later_calls_work_on_their_own() -> None:
    flights: SingleFlight[int] = SingleFlight()
    assert flights.run("a", lambda _: flights.run("b", lambda _: 1, yes) + 1, yes) == 2
    assert flights.run("a", lambda _: 3, yes) == 3


def test_one_who_does_not_wait_any_more_leaves_the_others_alone() -> None:
    flights: SingleFlight[int] = SingleFlight()
    started, go = threading.Event(), threading.Event()

    def work(wanted: Callable[[], bool]) -> int:
        started.set()
        go.wait()
        return 1

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.run, "key", work, yes)
        started.wait()
        with pytest.raises(Abandoned):
            flights.run("key", lambda _: 2, lambda: False)
        go.set()
        assert first.result() == 1


def test_the_work_goes_on_as_long_as_anybody_waits() -> None:
    flights: SingleFlight[int] = SingleFlight()
    wanted = {"first": True, "second": True}
    joined = threading.Event()

    def second() -> bool:
        joined.set()
        return wanted["second"]

    def work(anybody: Callable[[], bool]) -> int:
        while not joined.is_set():
            assert anybody()
        wanted["first"] = False
        assert anybody()
        return 1

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "key", work, lambda: wanted["first"])
        other = pool.submit(flights.run, "key", work, second)
        assert (first.result(), other.result()) == (1, 1)


def test_who_joins_what_was_given_up_starts_over() -> None:
    flights: SingleFlight[int] = SingleFlight()
    given_up, joined = threading.Event(), threading.Event()

    def work(anybody: Callable[[], bool]) -> int:
        assert not anybody()
        given_up.set()
        joined.wait()
        raise InterruptedError

    def late() -> bool:
        joined.set()
        return True

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "key", work, lambda: False)
        given_up.wait()
        second = pool.submit(flights.run, "key", lambda _: 2, late)
        with pytest.raises(InterruptedError):
            first.result()
        assert second.result() == 2
