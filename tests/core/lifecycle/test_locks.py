"""Locks by key."""

import threading

from virtlet.core.lifecycle.locks import KeyedLocks


def test_one_key_is_held_by_one_thread_and_another_key_is_free() -> None:
    locks = KeyedLocks()
    order: list[str] = []

    def work(key: str) -> None:
        with locks(key):
            order.append(key)

    with locks("a"):
        same, other = (threading.Thread(target=work, args=(key,)) for key in "ab")
        same.start()
        other.start()
        other.join(5)
        assert order == ["b"]
    same.join(5)
    assert order == ["b", "a"]


def test_the_thread_that_holds_a_key_may_take_it_again() -> None:
    locks = KeyedLocks()
    with locks("a"), locks("a"):
        pass
    with locks("a"):
        pass
