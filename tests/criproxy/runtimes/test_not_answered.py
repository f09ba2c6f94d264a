"""Which errors are a runtime's own word."""

from __future__ import annotations

import pytest

from criproxy.rpc.status import Code, PeerError, RpcError
from criproxy.runtimes.not_answered import NotAnswered, judged


def _is_own(
    error: RpcError, *, seconds: float = 1, timeout: float | None = None, leaving: bool = False
) -> bool:
    found = judged(error, seconds=seconds, timeout=timeout, leaving=leaving)
    assert (found.code, found.message) == (error.code, error.message)
    return not isinstance(found, NotAnswered)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED])
def test_silence_is_a_runtimes_own_word_where_the_runtime_said_it(code: Code) -> None:
    assert _is_own(PeerError(code, "said"))
    assert not _is_own(PeerError(code, "said while it left"), leaving=True)
    assert not _is_own(RpcError(code, "never said"))


def test_any_other_error_is_passed_on_whoever_said_it() -> None:
    assert _is_own(RpcError(Code.INTERNAL, "two messages"))
    assert _is_own(PeerError(Code.NOT_FOUND, "no such pod"), leaving=True)


def test_a_cancelled_call_was_not_answered() -> None:
    assert not _is_own(PeerError(Code.CANCELLED, "given up"))


@pytest.mark.parametrize(
    ("seconds", "timeout", "own"),
    [(2, 10, True), (9.5, 10, False), (0, 0, False), (9.5, None, True)],
)
def test_a_deadline_that_was_ours_is_no_word_of_the_runtimes(
    seconds: float, timeout: float | None, own: bool
) -> None:
    error = PeerError(Code.DEADLINE_EXCEEDED, "late")
    assert _is_own(error, seconds=seconds, timeout=timeout) is own
    assert _is_own(PeerError(Code.UNAVAILABLE, "away"), seconds=seconds, timeout=timeout)
