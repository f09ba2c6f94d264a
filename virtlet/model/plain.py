"""Plain data: what JSON can hold, and nothing that grows, loops or surprises.

YAML can write more than that: dates, sets, byte strings, and anchors by which a few hundred
bytes stand for gigabytes or for themselves. What a pod says goes through here, after
`bounded_yaml`.
"""

import datetime
import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 40
"""Levels of nesting."""
MAX_SIZE = 2 << 20
"""Characters of text plus eight for every value; annotations of a pod are 256 KiB at most."""
_PER_VALUE = 8
_QUOTED = 60


class UnquotedError(ValueError):
    """Says what is wrong with a text without quoting any of it, so it fits for secrets too."""


def quote(text: str) -> str:
    """A text in quotes for a message, cut where it is long."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}…"


def kind_of(value: Any) -> str:
    """A value's type with its article, `an int` or `a list` say; the value itself is not shown."""
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """The name of a type as it stands in a sentence."""
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"


class _Budget:
    def __init__(self, size: int, values: int) -> None:
        self._left = size
        self._values = values

    def spend(self, size: int, values: int = 0) -> None:
        self._left -= size
        self._values -= values
        if self._left < 0 or self._values < 0:
            raise UnquotedError("it is too large once its aliases are followed")


def plain(value: Any, max_size: int = MAX_SIZE, max_values: int = MAX_SIZE) -> Any:
    """A copy made of dict (with text keys), list, str, int, float, bool and None alone.

    Dates and times become their ISO 8601 text, keys the text JSON would make of them.

    Args:
        value: anything a YAML loader or a plugin may give.
        max_size: characters of text plus eight for every value; aliases count each time.
        max_values: values, keys too; aliases count each time.

    Raises:
        UnquotedError: some of it cannot be written as JSON, or it is too large or too deep.
    """
    return _plain(value, MAX_DEPTH, _Budget(max_size, max_values))


def _plain(value: Any, depth: int, budget: _Budget) -> Any:
    if depth == 0:
        raise UnquotedError(f"it is nested more than {MAX_DEPTH} levels deep")
    budget.spend(_PER_VALUE, 1)
    if isinstance(value, str):
        budget.spend(len(value))
        return _text(value)
    if isinstance(value, Mapping):
        return _mapping(value, depth - 1, budget)
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1, budget) for item in value]
    return _scalar(value)


def _mapping(value: Mapping[Any, Any], depth: int, budget: _Budget) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key)
        budget.spend(len(name), 1)
        if name in result:
            raise UnquotedError("two keys of one mapping are the same text")
        result[name] = _plain(item, depth, budget)
    return result


def _key(key: Any) -> str:
    if isinstance(key, str):
        return _text(key)
    if isinstance(key, bool):
        return "true" if key else "false"
    if key is None:
        return "null"
    return str(_scalar(key))


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) >= 1 << 64:
            raise UnquotedError("a whole number has more than 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnquotedError("a number is infinite or none at all")
        return float(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bytes):
        raise UnquotedError("it holds a byte string (!!binary): write it as base64 text instead")
    raise UnquotedError(f"it holds {kind_of(value)}, which JSON cannot express")


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON escapes what lies outside the basic plane as a pair; YAML reads two halves.
        try:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise UnquotedError("a text holds half of a surrogate pair") from None
    return str(value)
