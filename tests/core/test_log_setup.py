"""Log lines: one each, as JSON or text, and nothing of what an unexpected exception says."""

import contextvars
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from criproxy import log_lines as proxy_logs
from tests.fakes import models
from virtlet.core import log_setup
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.errors import PluginError

SECRET = "hunter2"
LOGGERS = ("", "virtlet", "criproxy", "somebodys_plugin", "somebodys_library")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the logs go; what was set up is put back afterwards."""
    handlers, hooks = logging.root.handlers[:], (sys.excepthook, threading.excepthook)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    stream = io.StringIO()
    log_setup.set_up("info", stream=stream)
    yield stream
    logging.root.handlers[:] = handlers
    sys.excepthook, threading.excepthook = hooks
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


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


def test_a_line_of_text_has_the_same_facts(stream: io.StringIO) -> None:
    log_setup.set_up("info", "text", stream=stream)
    facts = {"pods": 3, "pod_name": "default/web", "problem": 'no "disk"\nleft', "empty": ""}
    logging.getLogger("virtlet.x").info("two\nlines", extra=facts)
    line = stream.getvalue().partition(" ")[2]
    assert line == (
        "INFO    two\\nlines pods=3 pod_name=default/web "
        'problem="no \\"disk\\"\\nleft" empty="" logger=virtlet.x\n'
    )


def _record(with_error: bool) -> logging.LogRecord:
    error = None
    try:
        _fail()
    except ValueError as raised:
        error = raised
    info = (ValueError, error, error.__traceback__) if with_error and error else None
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, "größer %s", ("=",), info)
    vars(record).update(pod="1", pod_name="default/web", ms=1.5, odd='a "b" = c\x1b', none=None)
    return record


@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize("form", log_setup.FORMS)
def test_the_cri_proxys_lines_have_the_same_form(form: str, with_error: bool) -> None:
    record = _record(with_error)
    assert proxy_logs.LogLines(form).format(record) == log_setup.Lines(form).format(record)
    assert (proxy_logs.FORMS, proxy_logs.LEVELS) == (log_setup.FORMS, log_setup.LEVELS)


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("error", ["error"]),
        ("warning", ["warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("debug", ["debug", "info", "warning", "error"]),
    ],
)
def test_a_plugin_is_heard_from_the_level_that_is_set_and_a_library_from_warnings(
    stream: io.StringIO, level: str, heard: list[str]
) -> None:
    log_setup.set_up(level, packages=["somebodys_plugin"], stream=stream)
    for name in ("somebodys_plugin.disks", "somebodys_library", "virtlet.plugins.x"):
        for method in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(name), method)("told")
    by_logger: dict[str, list[str]] = {}
    for line in _lines(stream):
        by_logger.setdefault(line["logger"], []).append(line["level"])
    assert by_logger["somebodys_plugin.disks"] == by_logger["virtlet.plugins.x"] == heard
    assert by_logger["somebodys_library"] == [h for h in heard if h in ("warning", "error")]


def test_what_is_logged_within_a_call_says_what_the_call_is_about(stream: io.StringIO) -> None:
    def call() -> None:
        log_setup.about.set({"call": "StartContainer", "vm": "1", "pod_name": "default/web"})
        logging.getLogger("virtlet.x").info("disk made", extra={"vm": "2"})

    contextvars.copy_context().run(call)
    logging.getLogger("virtlet.x").info("afterwards")
    within, afterwards = _lines(stream)
    assert (within["call"], within["pod_name"], within["vm"]) == (
        "StartContainer",
        "default/web",
        "2",
    )
    assert "call" not in afterwards


def test_a_line_with_an_id_gets_the_names(stream: io.StringIO) -> None:
    lines = log_setup.set_up("info", stream=stream)
    lines.named = lambda facts: {"pod_name": "default/web", "vm_name": f"of {facts['vm']}"}
    logging.getLogger("virtlet.x").info("VM ended", extra={"vm": "1", "vm_name": "own"})
    [line] = _lines(stream)
    assert (line["pod_name"], line["vm_name"]) == ("default/web", "own")


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
    assert re.search(rf"test_log_setup.py:\d+ {fail.__name__}$", line["traceback"], re.MULTILINE)
    assert SECRET not in stream.getvalue()


def test_texts_of_what_a_plugin_raised_are_shown_where_they_are_asked_for(
    stream: io.StringIO,
) -> None:
    log_setup.set_up("info", stream=stream, quoting=True)
    for facts in ({}, {"plugin": "mine"}):
        try:
            _fail()
        except ValueError:
            logging.getLogger("virtlet.x").exception("failed", extra=facts)
    of_ours, of_plugin = _lines(stream)
    assert SECRET not in of_ours["traceback"]
    heads = [text for text in of_plugin["traceback"].splitlines() if not text.startswith(" ")]
    assert heads == [f"ValueError: {SECRET}", f"caused by KeyError: {SECRET!r}"]


@pytest.mark.parametrize("quoting", [False, True])
def test_what_a_plugin_raises_is_quoted_in_the_log_alone(
    stream: io.StringIO, tmp_path: Path, quoting: bool
) -> None:
    log_setup.set_up("info", stream=stream, quoting=quoting)
    hooks = Hooks(discover([EntryPoint("Raises", "tests.fakes.plugins:Raises", "virtlet")]))
    vm = models.vm(tmp_path, plugins=("Raises",))
    with pytest.raises(PluginError) as caught:
        hooks.flavor(vm.pod, vm.config, vm.image)
    assert SECRET not in str(caught.value)
    assert ("RuntimeError: hunter2" in stream.getvalue()) is quoting


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
    assert len(_lines(stream)[0]["traceback"].splitlines()) == log_setup.FRAME_LIMIT + 1


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
