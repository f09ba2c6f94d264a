"""Reading YAML and JSON at a cost that is known before anything is made of it.

Values are made of the events of a text as they come. What is too deep, too much or too expensive to
make is refused before it is made. With libyaml, 256 KiB of the worst text cost less than 100 ms
of CPU and 32 MiB.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import yaml

from virtlet.model.plain import MAX_DEPTH, UnquotedError, plain

MOST_CHARACTERS = 1 << 20
"""Of a text."""
MOST_VALUES = 8000
"""Scalars, lists and mappings, keys too; once aliases are followed as well."""
LONGEST_NUMBER = 100
"""Characters of a number or time: long ones take long to read."""
_MOST_TAGS = 1 << 18
"""Characters of all tags, which a directive can make long."""

_TAG = "tag:yaml.org,2002:"
_INT = f"{_TAG}int"
_LONG_TO_READ = {_INT, f"{_TAG}float", f"{_TAG}timestamp"}
_MERGE = f"{_TAG}merge"
_TEXT = f"{_TAG}str"
_BINARY = f"{_TAG}binary"
_NONE: Any = object()
T = TypeVar("T")

Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)
"""libyaml's where PyYAML has it, as its wheels do: ten times faster than the other."""


def _problem(error: yaml.YAMLError, text: str) -> str:
    """What is wrong with a text that PyYAML refused, without quoting any of it."""
    mark = getattr(error, "problem_mark", None)
    where = ""
    if mark:
        # libyaml says of what has no end that it is wrong one line after the last.
        line, column = mark.line + 1, mark.column + 1
        last = text.count("\n") + 1
        where = f" at line {min(line, last)}" + (f", column {column}" if line <= last else "")
    # PyYAML and libyaml know no other way to tell these.
    if getattr(error, "context", None) == "expected a single document in the stream":
        return f"it holds a second document{where}: leave one alone in it"
    match getattr(error, "problem", None):
        case "exceeded maximum nesting depth":
            return "no valid YAML: it is nested too deep"
        case "found invalid Unicode character escape code":
            return f"no valid YAML{where}: an escape is no character, or half of a surrogate pair"
    return f"no valid YAML{where}"


def load_yaml(text: str) -> Any:
    """The plain data of one YAML or JSON document, in a copy of the caller's own.

    Raises:
        UnquotedError: it is no YAML, not plain, or beyond the bounds.
    """
    return plain(_data(text))


@lru_cache(maxsize=4)
def _data(text: str) -> Any:
    """As `load_yaml`; the last ones are kept, as several hooks read the same annotation."""
    try:
        documents = _guarded(text, lambda: _Documents(text, MOST_VALUES, most_documents=1).read())
    except UnquotedError:
        # JSON escapes what lies outside the basic plane as a pair, which libyaml refuses.
        if len(text) > MOST_CHARACTERS or "\\ud" not in text.lower():
            raise
        try:
            documents = [json.loads(text)]
        except (ValueError, RecursionError):
            documents = []
        if not documents:
            raise
    return plain(documents[0], max_values=MOST_VALUES) if documents else None


def load_documents(text: str) -> list[Any]:
    """The documents of a text, with dates for dates.

    Raises:
        UnquotedError: it is no YAML, or beyond the bounds.
    """
    return _guarded(text, lambda: _Documents(text, MOST_VALUES).read())


def compose_yaml(text: str, most_values: int = MOST_VALUES) -> yaml.Node | None:
    """The root node of one document, None for an empty one.

    Args:
        text: the document.
        most_values: the bound for a text of somebody who is trusted.

    Raises:
        UnquotedError: it is no YAML, or beyond the bounds.
    """

    def root() -> yaml.Node | None:
        _Documents(text, most_values, as_written=True).read()
        node: yaml.Node | None = yaml.compose(text, Loader=Loader)
        return node

    return _guarded(text, root)


def _guarded(text: str, read: Callable[[], T]) -> T:
    if len(text) > MOST_CHARACTERS:
        raise UnquotedError(f"it has more than {MOST_CHARACTERS} characters")
    try:
        return read()
    except yaml.YAMLError as error:
        raise UnquotedError(_problem(error, text)) from None
    except UnquotedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        # What PyYAML's constructors raise for values that their tag does not fit, "!!int ''" or a
        # month 13, say. Their own texts quote the document.
        raise UnquotedError("no valid YAML: a value does not fit its type") from None


class _Documents:
    """Makes values of a text's events, each of which is let go of before the next.

    Args:
        text: any number of documents.
        most_values: in all of them.
        most_documents: that there may be.
        as_written: whether every scalar stays the text that it is.
    """

    def __init__(
        self,
        text: str,
        most_values: int,
        *,
        most_documents: int | None = None,
        as_written: bool = False,
    ) -> None:
        self._loader: Any = Loader(text)
        self._most_values = most_values
        self._most_documents = most_documents
        self._as_written = as_written
        self._makers = {
            f"{_TAG}null": self._loader.construct_yaml_null,
            f"{_TAG}bool": self._loader.construct_yaml_bool,
            _INT: self._loader.construct_yaml_int,
            f"{_TAG}float": self._loader.construct_yaml_float,
            f"{_TAG}timestamp": self._loader.construct_yaml_timestamp,
        }
        self._values = self._tags = 0
        self._open: list[list[Any] | dict[Any, Any]] = []
        self._keys: list[Any] = []
        """Of each open mapping the key whose value comes next, else _NONE."""
        self._anchors: dict[str, Any] = {}
        self._root: Any = None

    def read(self) -> list[Any]:
        """All documents."""
        documents: list[Any] = []
        while self._loader.check_event():
            event: Any = self._loader.get_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._add(event, self._scalar(event))
            elif kind is yaml.MappingStartEvent:
                self._begin(event, {}, "map")
            elif kind is yaml.SequenceStartEvent:
                self._begin(event, [], "seq")
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._open.pop()
                self._keys.pop()
            elif kind is yaml.AliasEvent:
                self._add(event, self._anchors[event.anchor])
            elif kind is yaml.DocumentStartEvent:
                if len(documents) == self._most_documents:
                    line = event.start_mark.line + 1
                    raise UnquotedError(
                        f"it holds a second document at line {line}: leave one alone in it"
                    )
                self._anchors.clear()
                self._root = None
            elif kind is yaml.DocumentEndEvent:
                documents.append(self._root)
        return documents

    def _begin(self, event: Any, value: list[Any] | dict[Any, Any], kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise UnquotedError("no valid YAML: a value does not fit its type")
        self._add(event, value)
        self._open.append(value)
        self._keys.append(_NONE)
        if len(self._open) > MAX_DEPTH:
            raise UnquotedError(f"it is nested more than {MAX_DEPTH} levels deep")

    def _add(self, event: Any, value: Any) -> None:
        self._values += 1
        if self._values > self._most_values:
            raise UnquotedError(f"it has more than {self._most_values} values")
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        if not self._open:
            self._root = value
            return
        container = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif self._keys[-1] is _NONE:
            hash(value)
            self._keys[-1] = value
        else:
            container[self._keys[-1]] = value
            self._keys[-1] = _NONE

    def _scalar(self, event: Any) -> Any:
        text, tag = event.value, event.tag
        if tag is None or tag == "!":
            if not event.implicit[0]:
                return text
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
        else:
            self._tags += len(tag)
            if self._tags > _MOST_TAGS:
                raise UnquotedError("its tags are too long")
        if tag == _MERGE:
            raise UnquotedError("it has a merge key (<<): write out what it stands for")
        if tag == _TEXT or self._as_written:
            return text
        if tag == _BINARY:
            raise UnquotedError("it holds a byte string (!!binary): write it as base64 text")
        if len(text) > LONGEST_NUMBER and tag in _LONG_TO_READ:
            raise UnquotedError(
                f"no valid YAML: a number or time has more than {LONGEST_NUMBER} characters"
            )
        value = self._makers[tag](yaml.ScalarNode(tag, text))
        # As keys of a mapping, large numbers could be chosen so that their hashes are the same.
        if isinstance(value, int) and abs(value) >= 1 << 64:
            raise UnquotedError("a whole number has more than 64 bits")
        return value
