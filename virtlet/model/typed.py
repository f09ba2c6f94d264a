"""Types that are checked where a value is made.

A model is declared with `field_transformer=typed`: its constructor then refuses a field of a wrong
type, in the plugin that makes the value and with its line in the traceback. What a plugin returns
is checked with `shape`, which need not look into models for that reason.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

import attrs

from virtlet.model.plain import kind_of, with_article


class Flaw(NamedTuple):
    """The first thing that has a wrong type. Never holds a value, which may be a secret."""

    path: str
    """Where it is, `.arguments[0]` say; "" for the value itself."""
    found: str
    wanted: str

    def of(self, value: object) -> str:
        """The flaw of a value as a clause, for a message."""
        wrong = f"{with_article(self.found)} instead of {self.wanted}"
        if not self.path:
            return wrong
        where = f"item {self.path}" if self.path.startswith("[") else self.path[1:]
        return f"{kind_of(value)} whose {where} is {wrong}"


class WrongType(TypeError):
    """A model was made with a field of a wrong type; the text names it and holds no value."""


Inspect = Callable[[Any], Flaw | None]


@attrs.frozen
class Shape:
    """A type, ready to look at values with."""

    name: str
    takes: Callable[[Any], bool]
    """Whether the value itself has the type."""
    inspect: Inspect
    """The flaw of the value or of what is in it."""


@cache
def shape(kind: Any) -> Shape:
    """The shape of a type as annotations of the models and hooks write it.

    Raises:
        TypeError: this module does not know such a type yet.
    """
    if kind is Any or isinstance(kind, TypeVar):
        return Shape("anything", lambda value: True, lambda value: None)
    if kind is None or kind is types.NoneType:
        return _plain("None", lambda value: value is None)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(tuple(shape(arg) for arg in args))
    if origin is tuple and args[-1] is not ...:
        return _pair(tuple(shape(arg) for arg in args))
    if origin in (tuple, frozenset):
        return _items(origin, origin.__name__, shape(args[0]))
    if origin is Sequence:
        # A text is a sequence of texts, and never what is meant by one.
        return _items((list, tuple), "list or tuple", shape(args[0]))
    if origin is Mapping:
        return _mapping(shape(args[0]), shape(args[1]))
    if origin is Callable:
        return _plain("function", callable)
    found = origin or kind
    if not isinstance(found, type):
        raise TypeError(f"no shape is known for {kind!r}")
    return _class(found)


def typed(cls: type, fields: list[Any]) -> list[Any]:
    """Have every field of an attrs class checked when a value is made (a `field_transformer`).

    A wrong type raises WrongType.
    """
    return [field.evolve(validator=_validator(cls.__name__, field.type)) for field in fields]


def _validator(model: str, kind: Any) -> Callable[[Any, Any, Any], None]:
    inspect = shape(kind).inspect

    def check(_: Any, field: Any, value: Any) -> None:
        flaw = inspect(value)
        if flaw is not None:
            where, wrong = f"{field.name}{flaw.path}", with_article(flaw.found)
            raise WrongType(
                f"{with_article(model)} whose {where} is {wrong} instead of {flaw.wanted}"
            )

    return check


def _plain(name: str, takes: Callable[[Any], bool]) -> Shape:
    def inspect(value: Any) -> Flaw | None:
        return None if takes(value) else Flaw("", type(value).__name__, name)

    return Shape(name, takes, inspect)


def _class(kind: type) -> Shape:
    # True is an int to Python, and `True` where a number belongs in a document.
    if kind is int:
        return _plain("int", lambda value: isinstance(value, int) and value.__class__ is not bool)
    if kind is float:
        numbers = (int, float)
        return _plain("float", lambda v: isinstance(v, numbers) and v.__class__ is not bool)
    return _plain(kind.__name__, lambda value: isinstance(value, kind))


def _deep(
    name: str, takes: Callable[[Any], bool], parts: Callable[[Any], Iterable[tuple[str, Any, Any]]]
) -> Shape:
    """A shape with parts: (path, value, how to inspect it)."""

    def inspect(value: Any) -> Flaw | None:
        if not takes(value):
            return Flaw("", type(value).__name__, name)
        for path, part, look in parts(value):
            flaw: Flaw | None = look(part)
            if flaw is not None:
                return flaw._replace(path=path + flaw.path)
        return None

    return Shape(name, takes, inspect)


def _items(kind: Any, name: str, item: Shape) -> Shape:
    return _deep(
        name,
        lambda value: isinstance(value, kind),
        lambda value: ((f"[{n}]", part, item.inspect) for n, part in enumerate(value)),
    )


def _pair(parts: tuple[Shape, ...]) -> Shape:
    return _deep(
        f"tuple of {len(parts)}",
        lambda value: isinstance(value, tuple) and len(value) == len(parts),
        lambda value: (
            (f"[{n}]", part, look.inspect)
            for n, (part, look) in enumerate(zip(value, parts, strict=True))
        ),
    )


def _mapping(key: Shape, item: Shape) -> Shape:
    def parts(value: Mapping[Any, Any]) -> Iterable[tuple[str, Any, Any]]:
        for name, part in value.items():
            yield " (one of its keys)", name, key.inspect
            yield f"[{name!r:.60}]", part, item.inspect

    return _deep("Mapping", lambda value: isinstance(value, Mapping), parts)


def _union(choices: tuple[Shape, ...]) -> Shape:
    name = " or ".join(choice.name for choice in choices)

    def takes(value: Any) -> bool:
        return any(choice.takes(value) for choice in choices)

    def inspect(value: Any) -> Flaw | None:
        for choice in choices:
            if choice.takes(value):
                return choice.inspect(value)
        return Flaw("", type(value).__name__, name)

    return Shape(name, takes, inspect)
