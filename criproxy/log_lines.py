"""Log lines on standard error, as JSON or as text.

They have the form of the manager's log (virtlet/core/log_setup.py, which must not be imported here;
tests/core/test_log_setup.py compares the two), so that one query serves both. Texts of unexpected
exceptions can quote requests, so tracebacks are written without them.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from traceback import StackSummary, walk_tb
from typing import Any, TextIO

LEVELS: Mapping[str, int] = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
FORMS = ("json", "text")
#: Number of innermost frames shown for each exception.
FRAME_LIMIT = 40
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

log = logging.getLogger(__name__)


class LogLines(logging.Formatter):
    """Formats a record as a line.

    Args:
        form: 'json' or 'text'.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment = f"{seconds}.{int(record.msecs):03d}Z"
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()
        if error is not None:
            # asyncio adds lines with the exception's text to its message.
            message = message.partition("\n")[0]
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        frames = [] if error is None else list(_frames(error, "", set()))
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


def _plain(value: object) -> str:
    """Return a value for a text line, quoted if it contains blanks or the like."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text, ensure_ascii=False)


def _frames(error: BaseException, how: str, seen: set[int]) -> Iterator[str]:
    """Yield types and places of an exception and its causes, never their texts."""
    seen.add(id(error))
    yield f"{how}{type(error).__qualname__}"
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
            yield from _frames(other, word, seen)


def set_up(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send all logs to a stream, unhandled exceptions too.

    Args:
        level: one of `LEVELS`; libraries log only warnings and errors.
        form: one of `FORMS`.
        stream: where to.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogLines(form))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(max(LEVELS[level], logging.WARNING))
    logging.getLogger("criproxy").setLevel(LEVELS[level])
    sys.excepthook = lambda kind, error, trace: log.critical("ended", exc_info=error)
