"""The helper that tests wait with."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.polling import serves, until, until_async


def test_waiting_returns_the_first_true_answer() -> None:
    answers = iter([0, None, 7, 8])
    assert until(lambda: next(answers)) == 7
    assert asyncio.run(until_async(lambda: next(answers))) == 8


def test_waiting_in_vain_tells_for_what_and_the_last_answer() -> None:
    with pytest.raises(AssertionError, match=r"waited 0 s in vain for a guest: \[\]"):
        until(list, "a guest", timeout=0)


def test_assertions_and_the_errors_named_count_as_not_yet() -> None:
    errors = iter([AssertionError("early"), OSError("refused"), KeyError("x")])

    def fail() -> None:
        raise next(errors)

    with pytest.raises(KeyError):
        until(fail, ignore=(OSError,))


def test_a_socket_serves_from_listen_on_and_not_from_bind_on(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert not serves(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not serves(path)
        server.listen()
        assert serves(path)
    assert not serves(path)
