"""What third parties build on: it grows within a major version, and nothing in it changes.

`golden/hook_api.txt` holds the whole of it, a fact a line. `make golden` writes additions; it
refuses to drop or change a line unless `HOOK_API` has changed too.
"""

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from pluggy import HookimplMarker

from virtlet import HOOK_API, api, hookspecs

GOLDEN = Path(__file__).parent / "golden" / "hook_api.txt"
HEADER = f"HOOK_API {HOOK_API}"


def facts() -> list[str]:
    """Hooks with arguments and modes, then every name of the door with all that belongs to it."""
    found = [HEADER]
    for hook, mode in hookspecs.HOOKS.items():
        found.append(f"hook {hook}{_signature(getattr(hookspecs, hook))} ({mode})")
    for name in sorted(api.__all__):
        found += _facts_of(name, getattr(api, name))
    return found


def _facts_of(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing) and issubclass(thing, api.VirtletError):
        yield f"error {name}({thing.__mro__[1].__name__}): {getattr(thing, 'status', '')}"
    elif inspect.isclass(thing) and issubclass(thing, enum.Enum):
        yield from (f"member {name}.{member.name} = {member.value!r}" for member in thing)
    elif inspect.isclass(thing):
        if attrs.has(thing):
            yield from (f"field {name}.{_field(field)}" for field in attrs.fields(thing))
        yield from (f"method {name}.{method}" for method in _methods(thing))
    elif inspect.ismodule(thing):
        yield from (f"function {name}.{function}" for function in _functions(thing))
    elif inspect.isfunction(thing) and not thing.__module__.startswith("virtlet."):
        yield f"name {name}: that of {thing.__module__.partition('.')[0]}"
    elif inspect.isfunction(thing):
        yield f"function {name}{_signature(thing)}"
    elif isinstance(thing, HookimplMarker):
        yield f"name {name}: marks the hooks of {thing.project_name!r}"
    else:
        yield f"name {name}: {_short(getattr(thing, 'name', thing))}"


def _field(field: Any) -> str:
    kind = _short(inspect.formatannotation(field.type))
    if field.default is attrs.NOTHING:
        return f"{field.alias}: {kind}"
    made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
    default = field.default.factory() if made else field.default
    return f"{field.alias}: {kind} = {default!r}"


def _methods(kind: type) -> Iterator[str]:
    abstract: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name, member in sorted(vars(kind).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            assert member.fget is not None
            yield f"{name}{_signature(member.fget)} [property]"
        elif inspect.isfunction(member):
            yield f"{name}{_signature(member)}{' [abstract]' if name in abstract else ''}"


def _functions(module: Any) -> Iterator[str]:
    for name, member in sorted(vars(module).items()):
        if inspect.isfunction(member) and member.__module__ == module.__name__ and name[0] != "_":
            yield f"{name}{_signature(member)}"


def _signature(function: Any) -> str:
    return _short(str(inspect.signature(function)))


def _short(text: object) -> str:
    """Only the types' own names: docs/hooks.md says where they come from."""
    short = re.sub(r"(?<![\w'\"])(?:[a-z_]+\.)+(?=[A-Za-z~])", "", str(text))
    return short.replace("Disk | Share | GuestFiles | Unneeded", "Volume")


def test_the_hook_api_only_grows_within_a_major_version(refresh_golden: bool) -> None:
    now = facts()
    before = GOLDEN.read_text().splitlines() if GOLDEN.exists() else [HEADER]
    if refresh_golden:
        if before[0] == HEADER:
            lost = [line for line in before if line not in now]
            assert not lost, "these are promised: keep them, or raise HOOK_API"
        GOLDEN.write_text("".join(f"{line}\n" for line in now))
        before = now
    assert now == before, "an addition: `make golden`; a change or removal needs another HOOK_API"


def test_every_type_that_a_hook_names_is_behind_the_door() -> None:
    words = {
        word
        for hook in hookspecs.HOOKS
        for word in re.findall(r"\b[A-Z]\w+", _signature(getattr(hookspecs, hook)))
    }
    foreign = {"Any", "Element", "ElementTree", "None", "Path", "Sequence"}
    assert words - foreign <= set(api.__all__)
