"""Reading a pod's log while it is written and rotated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.cli.client import follow_log

HEAD = b"2026-01-02T03:04:05.000000006Z stdout "


def test_parts_of_a_line_are_put_together_and_a_line_half_written_waits(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(HEAD + b"P one \n" + HEAD + b"F and two\n" + HEAD + b"F thr")
    assert b"".join(follow_log(log, follow=False)) == b"one and two\n"


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list(follow_log(tmp_path / "0.log", follow=False)) == []


def test_a_rotated_log_is_followed_to_its_end_and_on_in_the_new_file(tmp_path: Path) -> None:
    log, old = tmp_path / "0.log", tmp_path / "0.log.1"
    log.write_bytes(HEAD + b"F one\n")
    steps = _rotate(log, old)
    payload = b"".join(follow_log(log, follow=True, ended=lambda: next(steps)))
    assert payload == b"one\ntwo\nthree\n"


def _rotate(log: Path, old: Path) -> Iterator[bool]:
    """What happens to the log, one step at every look of the reader."""
    yield False
    log.rename(old)
    with old.open("ab") as file:
        file.write(HEAD + b"F two\n")
    log.write_bytes(HEAD + b"F three\n")
    yield False
    yield True


@pytest.mark.parametrize(
    ("lines", "given"),
    [(0, b"half"), (1, b"three\nhalf"), (2, b"two and more\nthree\nhalf"), (9, None)],
)
def test_the_last_lines_are_whole_ones(tmp_path: Path, lines: int, given: bytes | None) -> None:
    log = tmp_path / "0.log"
    parts = (b"F one", b"P two ", b"F and more", b"F three", b"P half")
    log.write_bytes(b"".join(HEAD + part + b"\n" for part in parts))
    whole = b"one\ntwo and more\nthree\nhalf"
    assert b"".join(follow_log(log, follow=False, tail=lines)) == (given or whole)


def test_lines_that_are_older_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    stamps = (b"2026-01-02T03:04:05.9Z", b"2026-01-02T03:04:06.000000001Z", b"2026-01-02T03:05:00Z")
    log.write_bytes(b"".join(b"%s stdout F %d\n" % (at, n) for n, at in enumerate(stamps)))
    given = follow_log(log, follow=False, since="2026-01-02T03:04:06.000000")
    assert b"".join(given) == b"1\n2\n"


def test_of_a_log_that_is_followed_the_last_lines_and_all_that_come_are_given(
    tmp_path: Path,
) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(HEAD + b"F one\n" + HEAD + b"F two\n")

    def more() -> Iterator[bool]:
        yield False
        with log.open("ab") as file:
            file.write(HEAD + b"F three\n" + HEAD + b"F four\n")
        yield True

    steps = more()
    given = follow_log(log, follow=True, ended=lambda: next(steps), tail=1)
    assert b"".join(given) == b"two\nthree\nfour\n"
