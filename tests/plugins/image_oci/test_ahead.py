"""Reading ahead ends with its reader, and brings errors in their place."""

import threading
from collections.abc import Iterator

import pytest

from tests.polling import until
from virtlet.errors import Unavailable
from virtlet.image_servers.ahead import ahead


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "image-layer"]


def test_everything_comes_in_order_and_then_the_error() -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(5000):
            yield b"%4d" % number * 300
        raise Unavailable("broken")

    got: list[bytes] = []
    with pytest.raises(Unavailable, match="broken"), ahead(chunks()) as taken:
        got.extend(taken)
    assert b"".join(got) == b"".join(b"%4d" % number * 300 for number in range(5000))
    until(no_thread_is_left)


def test_no_more_than_some_mib_are_made_ahead() -> None:
    made = threading.Semaphore(0)

    def chunks() -> Iterator[bytes]:
        while True:
            made.release()
            yield bytes(1 << 20)

    with ahead(chunks()) as taken:
        # Four that wait, and the one that there is no room for.
        for _ in range(5):
            assert made.acquire(timeout=20)
        assert not made.acquire(timeout=0.2)
        next(taken)
        assert made.acquire(timeout=20)
    until(no_thread_is_left)


def test_readers_in_a_row_all_end_when_the_last_one_leaves() -> None:
    with ahead(iter([bytes(1 << 20)] * 100)) as first, ahead(first) as second:
        next(second)
    until(no_thread_is_left)


def test_with_something_to_close_the_thread_is_over_at_the_end() -> None:
    asked, closed = threading.Event(), threading.Event()

    def chunks() -> Iterator[bytes]:
        asked.set()
        closed.wait(60)
        yield b"late"

    with pytest.raises(Unavailable), ahead(chunks(), closed.set):
        assert asked.wait(20)
        raise Unavailable("cancelled")
    assert no_thread_is_left()


def test_what_there_is_can_be_taken_while_more_is_waited_for() -> None:
    closed = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"first"
        yield b"second"
        closed.wait(60)

    with ahead(chunks(), closed.set) as taken:
        assert [next(taken), next(taken)] == [b"first", b"second"]
        assert not closed.is_set()
