import pytest

from virtlet.errors import ResourceExhausted
from virtlet.streaming.tokens import TokenStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_gives_its_request_once() -> None:
    store: TokenStore[str] = TokenStore(60, 10)
    token = store.issue("request")
    assert store.redeem(token, str) == "request"
    assert store.redeem(token, str) is None


def test_a_token_ends_after_its_lifetime() -> None:
    clock = Clock()
    store: TokenStore[str] = TokenStore(60, 10, clock)
    early, late = store.issue("early"), ""
    clock.now += 59
    late = store.issue("late")
    clock.now += 1
    assert store.redeem(early, str) is None
    assert store.redeem(late, str) == "late"


def test_a_token_is_kept_when_asked_for_as_another_kind() -> None:
    store: TokenStore[str | int] = TokenStore(60, 10)
    token = store.issue("request")
    assert store.redeem(token, int) is None
    assert store.redeem(token, str) == "request"


def test_tokens_are_long_and_all_different() -> None:
    store: TokenStore[int] = TokenStore(60, 1000)
    tokens = {store.issue(number) for number in range(1000)}
    assert len(tokens) == 1000
    assert min(map(len, tokens)) >= 32


def test_too_many_unused_tokens_are_refused_until_they_end() -> None:
    clock = Clock()
    store: TokenStore[int] = TokenStore(60, 3, clock)
    for number in range(3):
        store.issue(number)
    with pytest.raises(ResourceExhausted, match="3 streaming URLs wait"):
        store.issue(4)
    clock.now += 60
    assert store.issue(5)
