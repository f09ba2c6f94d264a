#!/usr/bin/env python3
"""Write docs/types.md: all that `virtlet.api` has, from the code and its docstrings.

`make docs` runs it; tests/docs/test_types_page.py fails when the file is not what this prints.
"""

import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_origin

import attrs

from virtlet import api

HEAD = """\
# Types and helpers of plugins

Written by `make docs` from the code; do not edit. All of this is in `virtlet.api`, and nothing
else is promised. [hooks.md](hooks.md) says what takes and returns it. Every model is frozen and is
made with keywords; its fields are checked when it is made. A field without a default has to be
given. `evolve(disk, readonly=True)` copies one with other values in some fields.
"""

_UNION = "Disk | Share | GuestFiles | Unneeded"


def page() -> str:
    """The whole page: a section for each module, in the order of its name."""
    things = [(name, getattr(api, name)) for name in api.__all__]
    homes: dict[str, list[tuple[str, Any]]] = {}
    for name, thing in things:
        homes.setdefault(_home(name, thing), []).append((name, thing))
    parts = [HEAD]
    for home in sorted(homes, key=lambda home: (not home.startswith("virtlet.model"), home)):
        if not home:
            continue
        module = importlib.import_module(home)
        parts.append(f"\n## {_first_line(module).rstrip('.').partition(', as ')[0]}\n")
        in_source = _order(module)
        for name, thing in sorted(homes[home], key=lambda item: in_source.get(item[0], 0)):
            parts.append(f"\n### {name}\n" + "".join(f"\n{text}\n" for text in _of(name, thing)))
    return "".join(parts)


def _home(name: str, thing: Any) -> str:
    """The module of ours that a name comes from; "" for what has no section of its own."""
    if get_origin(thing) is not None:  # an alias does not know its home
        ours = (m for n, m in sorted(sys.modules.items()) if n.startswith("virtlet.model."))
        return next(m.__name__ for m in ours if f"\n{name} = " in inspect.getsource(m))
    home = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", "")
    code = inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing)
    return home if code and home.startswith("virtlet.") else ""


def _order(module: ModuleType) -> dict[str, int]:
    tree = ast.parse(inspect.getsource(module))
    found = {n.name: n.lineno for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    assigned = (n for n in tree.body if isinstance(n, ast.Assign))
    return found | {t.id: n.lineno for n in assigned for t in n.targets if isinstance(t, ast.Name)}


def _of(name: str, thing: Any) -> Iterator[str]:
    """Paragraphs about one name."""
    if get_origin(thing) is not None:
        yield f"`{re.sub(r'(?:[a-z_]+[.])+', '', str(thing))}`"
    elif inspect.ismodule(thing):
        yield "A module: `from virtlet.api import " + name + "`."
        for function in _functions(thing):
            yield f"`{name}.{_signature(function)}`\n\n{_words(function)}"
    elif inspect.isfunction(thing):
        yield f"`{_signature(thing)}`\n\n{_words(thing)}"
    elif issubclass(thing, api.VirtletError):
        yield f"{_words(thing)} Becomes the gRPC status {thing.status}."
    elif inspect.isclass(thing):
        yield _words(thing)
        rows = list(_members(thing) if issubclass(thing, enum.Enum) else _fields(thing))
        if rows:
            yield "| | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)
        for title, method in _methods(thing):
            yield f"{title}\n\n{_words(method)}"
    if thing is api.Kind:
        kinds = [(k, getattr(api, k)) for k in api.__all__ if isinstance(getattr(api, k), api.Kind)]
        yield "Ready made: " + ", ".join(f"`{name}` ({kind.name})" for name, kind in kinds) + "."


def _fields(kind: type) -> Iterator[str]:
    if not attrs.has(kind):
        return
    words = _words_of_fields(kind)
    for field in attrs.fields(kind):
        default = "" if field.default is attrs.NOTHING else f"`{_default(field.default)}`"
        yield _row(field.alias, _short(inspect.formatannotation(field.type)), default, words, field)


def _row(name: str, kind: str, default: str, words: dict[str, str], field: Any) -> str:
    cells = (f"`{name}`", f"`{kind}`", default, words.get(field.name, ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _members(kind: type[enum.Enum]) -> Iterator[str]:
    words = _words_of_fields(kind)
    for member in kind:
        yield f"| `{member.name}` | | `{member.value!r}` | {words.get(member.name, '')} |"


def _words_of_fields(kind: type) -> dict[str, str]:
    """The texts that stand below the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]  # type: ignore[assignment]
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            found[target.id] = " ".join(str(after.value.value).split())
    return found


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    abstract: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            assert member.fget is not None
            returns = _short(inspect.formatannotation(member.fget.__annotations__["return"]))
            yield f"`{name}: {returns}` (a property)", member.fget
        elif inspect.isfunction(member):
            mark = " (to be implemented)" if name in abstract else ""
            yield f"`{_signature(member)}`{mark}", member


def _functions(module: ModuleType) -> Iterator[Any]:
    for name, member in vars(module).items():
        if inspect.isfunction(member) and member.__module__ == module.__name__ and name[0] != "_":
            yield member


def _default(default: Any) -> str:
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory()
    return f"{type(default).__name__}()" if attrs.has(type(default)) else repr(default)


def _signature(function: Any) -> str:
    found = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    return _short(f"{function.__name__}{found}")


def _short(text: str) -> str:
    """Only the types' own names."""
    short = re.sub(r"(?<![\w'\"])(?:[a-z_]+\.)+(?=[A-Za-z~])|~", "", text)
    return short.replace(_UNION, "Volume")


def _words(thing: Any) -> str:
    """The docstring as Markdown, with its sections as lists."""
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    out: list[str] = []
    for line in lines:
        if line in ("Args:", "Returns:", "Raises:"):
            out.append(f"**{line[:-1]}**\n")
        elif re.match(r"    \w[\w, ]*: ", line):
            out.append(f"- {line.strip()}")
        else:
            out.append(re.sub("^(    ){1,2}", lambda m: "  " if len(m[0]) > 4 else "", line))
    return "\n".join(out).strip()


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or module.__name__).splitlines()[0]


if __name__ == "__main__":
    sys.stdout.write(page())
