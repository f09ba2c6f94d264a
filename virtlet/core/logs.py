"""Structured logs: one JSON object per line on standard error.

What is logged is an event's name and plain facts (ids, names, durations). Requests, annotations,
environments and documents are never passed to a logger, because they can hold secrets. The texts
of exceptions that nobody expected can quote them too, so tracebacks are written without.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from traceback import StackSummary, walk_tb
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

LEVELS = (logging.ERROR, logging.INFO, logging.DEBUG)
"""By the `logLevel` option; higher numbers mean the last."""

FRAME_LIMIT = 40
"""The innermost frames of each exception that are shown."""

log = logging.getLogger(__name__)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            # What asyncio adds to its message in more lines has the exception's text in it.
            "message": message if error is None else message.partition("\n")[0],
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if error is not None:
            line["traceback"] = "\n".join(_frames(error, "", set()))
        return json.dumps(line, default=str)


def _frames(error: BaseException, how: str, seen: set[int]) -> Iterator[str]:
    """Types and places of an exception and of those behind it: never their texts."""
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


def set_up(verbosity: int, stream: TextIO = sys.stderr) -> None:
    """Send all logs to a stream, and what would end a thread or the process with a traceback.

    Args:
        verbosity: 0 errors, 1 changes, 2 and more every call.
        stream: where to.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Line())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING if verbosity else logging.ERROR)
    logging.getLogger("virtlet").setLevel(LEVELS[min(verbosity, len(LEVELS) - 1)])
    sys.excepthook = lambda kind, error, trace: log.critical("ended", exc_info=error)
    threading.excepthook = _thread_ended


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and ended.exc_type is not SystemExit:
        name = ended.thread.name if ended.thread else ""
        log.critical("thread ended", extra={"thread_name": name}, exc_info=ended.exc_value)
