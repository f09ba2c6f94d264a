"""Log lines: one on standard error for each thing that happens, as JSON or as text.

What is logged is an event's name and plain facts (ids, names, durations). Requests, annotations,
environments and documents are never passed to a logger, because they can hold secrets. The text of
an unexpected exception can quote them, so tracebacks leave it out. With the setting
showPluginErrors it is written for exceptions that a plugin raised.

The CRI proxy's log has the same form (criproxy/log_lines.py), so that one query serves both.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from traceback import StackSummary, walk_tb
from typing import Any, TextIO

LEVELS: Mapping[str, int] = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
FORMS = ("json", "text")

TEXT_LIMIT = 300
"""Characters shown of an exception's text."""
FRAME_LIMIT = 40
"""Innermost frames shown of each exception."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Naming = Callable[[Mapping[str, Any]], Mapping[str, str]]
"""Takes a line's facts and returns names for the ids among them."""

about: ContextVar[Mapping[str, str]] = ContextVar("about")
"""Facts for every line that is logged in a context, plugins' too: those of the call under way."""

log = logging.getLogger(__name__)


class Lines(logging.Formatter):
    """Formats records as lines.

    Args:
        form: 'json' or 'text'.
        named: gives names for ids.
        quoting: whether a line about a plugin has the texts of the exceptions.
    """

    def __init__(
        self, form: str, named: Naming = lambda facts: {}, *, quoting: bool = False
    ) -> None:
        super().__init__()
        self._form = form
        self._quoting = quoting
        self.named = named

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment = f"{seconds}.{int(record.msecs):03d}Z"
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()
        if error is not None:
            # asyncio appends lines with the exception's text to its message.
            message = message.partition("\n")[0]
        facts = self._facts(record)
        quoting = self._quoting and "plugin" in vars(record)
        frames = [] if error is None else list(_frames(error, "", set(), quoting))
        if self._form == "text":
            shown = " ".join(f"{key}={_plain(value)}" for key, value in facts.items())
            head = f"{moment} {record.levelname:<7} {json.dumps(message, ensure_ascii=False)[1:-1]}"
            parts = [f"{head} {shown}".rstrip() + f" logger={record.name}"]
            return "\n".join([*parts, *(f"    {frame}" for frame in frames)])
        line: dict[str, Any] = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **facts,
        }
        if frames:
            line["traceback"] = "\n".join(frames)
        return json.dumps(line, default=str)

    def _facts(self, record: logging.LogRecord) -> Mapping[str, Any]:
        own = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        facts = {**own, **{k: v for k, v in about.get({}).items() if k not in own}}
        return {**facts, **{k: v for k, v in self.named(facts).items() if k not in facts}}


def _plain(value: object) -> str:
    """A value for a text line, quoted if it has blanks, quotes or control characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text, ensure_ascii=False)


def text_of(error: BaseException) -> str:
    """An exception's text as one line of at most `TEXT_LIMIT` characters."""
    try:
        return " ".join(str(error).split())[:TEXT_LIMIT]
    except Exception:
        return ""


def _frames(error: BaseException, how: str, seen: set[int], quoting: bool) -> Iterator[str]:
    """Types and places of an exception and its causes, with their texts if `quoting`."""
    seen.add(id(error))
    text = text_of(error) if quoting else ""
    yield f"{how}{type(error).__qualname__}" + (f": {text}" if text else "")
    stack = StackSummary.extract(
        walk_tb(error.__traceback__), limit=-FRAME_LIMIT, lookup_lines=False
    )
    for frame in stack:
        yield f"  {frame.filename}:{frame.lineno} {frame.name}"
    behind: list[tuple[str, BaseException | None]] = [("caused by ", error.__cause__)]
    if not error.__suppress_context__:
        behind.append(("while handling ", error.__context__))
    if isinstance(error, BaseExceptionGroup):
        behind += [("with ", part) for part in error.exceptions]
    for word, other in behind:
        if other is not None and id(other) not in seen:
            yield from _frames(other, word, seen, quoting)


def set_level(level: str, packages: Iterable[str] = ()) -> None:
    """What is logged from now on; see `set_up`."""
    logging.root.setLevel(max(LEVELS[level], logging.WARNING))
    for package in ("virtlet", *packages):
        logging.getLogger(package).setLevel(LEVELS[level])


def set_up(
    level: str,
    form: str = "json",
    packages: Iterable[str] = (),
    stream: TextIO = sys.stderr,
    *,
    quoting: bool = False,
) -> Lines:
    """Send all logs to a stream, and uncaught exceptions of threads and the process with them.

    Args:
        level: one of `LEVELS`; of libraries only warnings and errors are logged.
        form: one of `FORMS`.
        packages: Python packages of third-party plugins, logged at the same level as ours.
        stream: where to.
        quoting: see `Lines`.

    Returns:
        The formatter; its `named` can be set later.
    """
    lines = Lines(form, quoting=quoting)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(lines)
    logging.root.handlers[:] = [handler]
    set_level(level, packages)
    sys.excepthook = lambda kind, error, trace: log.critical("ended", exc_info=error)
    threading.excepthook = _thread_ended
    return lines


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and ended.exc_type is not SystemExit:
        name = ended.thread.name if ended.thread else ""
        log.critical("thread ended", extra={"thread_name": name}, exc_info=ended.exc_value)
