"""Log lines: JSON, one each, and nothing of what an unexpected exception says."""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from virtlet.core import logs

SECRET = "hunter2"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the logs go; what was set up is put back afterwards."""
    handlers, hooks = logging.root.handlers[:], (sys.excepthook, threading.excepthook)
    levels = logging.root.level, logging.getLogger("virtlet").level
    stream = io.StringIO()
    logs.set_up(1, stream)
    yield stream
    logging.root.handlers[:] = handlers
    sys.excepthook, threading.excepthook = hooks
    logging.root.setLevel(levels[0])
    logging.getLogger("virtlet").setLevel(levels[1])


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(SECRET) from error


def _fail_while_handling() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        raise ValueError(SECRET)  # noqa: B904 (this is what is tested)


def _fail_in_a_group() -> None:
    raise ExceptionGroup(SECRET, [ValueError(SECRET)])


def _fail_with_notes() -> None:
    error = ValueError(SECRET)
    error.add_note(SECRET)
    raise error


def test_a_line_has_the_facts_it_was_given(stream: io.StringIO) -> None:
    logging.getLogger("virtlet.x").info("ready", extra={"pods": 3})
    [line] = _lines(stream)
    assert line["message"] == "ready"
    assert line["pods"] == 3
    assert "traceback" not in line


@pytest.mark.parametrize(
    ("fail", "parts"),
    [
        (_fail, ["ValueError", "caused by KeyError"]),
        (_fail_while_handling, ["ValueError", "while handling KeyError"]),
        (_fail_in_a_group, ["ExceptionGroup", "with ValueError"]),
        (_fail_with_notes, ["ValueError"]),
    ],
)
def test_a_traceback_has_types_and_places_and_no_text(
    stream: io.StringIO, fail: Any, parts: list[str]
) -> None:
    try:
        fail()
    except Exception:
        logging.getLogger("virtlet.x").exception("failed")
    [line] = _lines(stream)
    heads = [text for text in line["traceback"].splitlines() if not text.startswith(" ")]
    assert heads == parts
    assert re.search(rf"test_logs.py:\d+ {fail.__name__}$", line["traceback"], re.MULTILINE)
    assert SECRET not in stream.getvalue()


def test_exceptions_that_hang_in_a_circle_are_shown_once(stream: io.StringIO) -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    logging.getLogger("virtlet.x").error("failed", exc_info=first)
    assert _lines(stream)[0]["traceback"].splitlines() == ["ValueError", "caused by KeyError"]


def test_a_very_deep_traceback_is_cut(stream: io.StringIO) -> None:
    def deeper(n: int) -> None:
        if n == 0:
            raise ValueError(SECRET)
        deeper(n - 1)

    try:
        deeper(200)
    except ValueError:
        logging.getLogger("virtlet.x").exception("failed")
    assert len(_lines(stream)[0]["traceback"].splitlines()) == logs.FRAME_LIMIT + 1


def test_a_message_with_an_exception_ends_at_its_first_line(stream: io.StringIO) -> None:
    error = ValueError(SECRET)
    text = f"Task exception was never retrieved\nfuture: <Task exception={error!r}>"
    logging.getLogger("asyncio").error(text, exc_info=error)
    assert _lines(stream)[0]["message"] == "Task exception was never retrieved"
    assert SECRET not in stream.getvalue()


def test_what_ends_a_thread_is_a_log_line(stream: io.StringIO) -> None:
    thread = threading.Thread(target=_fail, name="worker")
    thread.start()
    thread.join()
    [line] = _lines(stream)
    assert (line["message"], line["thread_name"]) == ("thread ended", "worker")
    assert SECRET not in stream.getvalue()


def test_a_thread_that_exits_is_no_log_line(stream: io.StringIO) -> None:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    assert stream.getvalue() == ""


def test_what_ends_the_process_is_a_log_line(stream: io.StringIO) -> None:
    error = ValueError(SECRET)
    sys.excepthook(ValueError, error, None)
    assert _lines(stream)[0]["traceback"] == "ValueError"
    assert SECRET not in stream.getvalue()
