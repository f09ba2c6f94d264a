"""What third parties build on: it grows within a major version, and nothing in it changes.

`golden/hook_api.txt` holds the whole of it, a fact a line. `make golden` writes additions; it
refuses to drop or change a line unless `HOOK_API` has changed too.
"""

import enum
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from pluggy import HookimplMarker

from virtlet import HOOK_API, api, hookspecs

GOLDEN = Path(__file__).parent / "golden" / "hook_api.txt"
PROTOCOLS = ("__enter__", "__exit__", "__getitem__")
"""Methods that an author calls by a statement or in brackets."""
HEADER = f"HOOK_API {HOOK_API}"


def facts() -> list[str]:
    """Hooks with arguments and modes, then every name of the door with all that belongs to it."""
    found = [HEADER]
    for hook, mode in hookspecs.HOOKS.items():
        found += _callable("hook", hook, getattr(hookspecs, hook), f" ({mode})")
    for name in sorted(api.__all__):
        found += _facts_of(name, getattr(api, name))
    return found


def _facts_of(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing) and issubclass(thing, api.VirtletError):
        yield f"error {name}({thing.__mro__[1].__name__}): {getattr(thing, 'status', '')}"
        if thing is not api.VirtletError:
            fields = inspect.get_annotations(thing).items()
            yield from (f"field {name}.{field}: {_kind(kind)}" for field, kind in fields)
    elif inspect.isclass(thing) and issubclass(thing, enum.Enum):
        yield from (f"member {name}.{member.name} = {member.value!r}" for member in thing)
    elif inspect.isclass(thing):
        if attrs.has(thing):
            yield from (f"field {name}.{_field(field)}" for field in attrs.fields(thing))
        yield from _methods(name, thing)
    elif inspect.ismodule(thing):
        yield from _functions(name, thing)
    elif inspect.isfunction(thing) and not thing.__module__.startswith("virtlet."):
        yield f"name {name}: that of {thing.__module__.partition('.')[0]}"
    elif inspect.isfunction(thing):
        yield from _callable("function", name, thing)
    elif isinstance(thing, types.UnionType):
        yield from (f"member {name}.{member.__name__}" for member in get_args(thing))
    elif isinstance(thing, HookimplMarker):
        yield f"name {name}: marks the hooks of {thing.project_name!r}"
    elif isinstance(thing, api.Kind):
        declared = inspect.get_annotations(sys.modules[api.Kind.__module__])[name]
        yield f"name {name}: {_kind(declared)}"
    else:
        yield f"name {name}: {_short(thing)}"


def _field(field: Any) -> str:
    kind = _kind(field.type)
    if field.default is attrs.NOTHING:
        return f"{field.alias}: {kind}"
    made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
    default = field.default.factory() if made else field.default
    model = type(default)
    # A model without values of its own is written so, as its fields may become more.
    plain = attrs.has(model) and default == model()
    return f"{field.alias}: {kind} = {f'{model.__name__}()' if plain else repr(default)}"


def _kind(annotation: Any) -> str:
    return _short(inspect.formatannotation(annotation))


def _methods(owner: str, kind: type) -> Iterator[str]:
    abstract: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name, member in sorted(vars(kind).items()):
        if name.startswith("_") and name not in PROTOCOLS:
            continue
        if isinstance(member, property):
            assert member.fget is not None
            yield f"method {owner}.{name}{_signature(member.fget)} [property]"
        elif (
            inspect.isfunction(member) and abstract
        ):  # plugins have these methods: no argument more
            end = " [abstract]" if name in abstract else ""
            yield f"method {owner}.{name}{_signature(member)}{end}"
        elif inspect.isfunction(member):
            yield from _callable("method", f"{owner}.{name}", member)


def _functions(owner: str, module: Any) -> Iterator[str]:
    for name, member in sorted(vars(module).items()):
        if inspect.isfunction(member) and member.__module__ == module.__name__ and name[0] != "_":
            yield from _callable("function", f"{owner}.{name}", member)


def _callable(what: str, name: str, function: Any, mode: str = "") -> Iterator[str]:
    """What is called, and each of its arguments, which may become more."""
    signature = inspect.signature(function)
    yield f"{what} {name} -> {_kind(signature.return_annotation)}{mode}"
    for place, argument in enumerate(signature.parameters.values()):
        if argument.name != "self":
            by_place = argument.kind is not argument.KEYWORD_ONLY and what != "hook"
            end = f" [{place}]" if by_place else ""
            yield f"argument {name}.{_short(str(argument))}{end}"


def _signature(function: Any) -> str:
    return _short(str(inspect.signature(function)))


def _short(text: object) -> str:
    """Only the types' own names: docs/hooks.md says where they come from."""
    short = re.sub(r"(?<![\w'\"])(?:[a-z_]+\.)+(?=[A-Za-z~])", "", str(text))
    return short.replace("Disk | Share | GuestFiles | Unneeded", "Volume")


def breaches(before: list[str], now: list[str]) -> list[str]:
    """Facts that are gone or changed, and new ones that a plugin of before cannot meet."""
    lost = [line for line in before if line not in now]
    known = {_name(line) for line in before} | {_owner(line) for line in before}
    new = [line for line in now if line not in before and _owner(line) in known]
    return lost + [line for line in new if _asks_for_more(line)]


def _name(line: str) -> str:
    return re.split(r"[ (:]", line)[1]


def _owner(line: str) -> str:
    return _name(line).rpartition(".")[0]


def _asks_for_more(line: str) -> bool:
    given = line.startswith(("field ", "argument ")) and not line.startswith("argument virtlet_")
    return line.endswith("[abstract]") or (given and " = " not in line)


@pytest.mark.parametrize(
    ("more", "breach"),
    [
        ("field Disk.cache: str = ''", False),
        ("field Disk.cache: str", True),
        ("field Cache.size: int", False),
        ("argument virtlet_admit_pod.image: Image", False),
        ("argument run.cwd: Path | None = None", False),
        ("argument run.cwd: Path", True),
        ("argument Links.close.timeout: float [1]", True),
        ("method Hypervisor.pause(self, vm_id: str) -> None", False),
        ("method Hypervisor.pause(self, vm_id: str) -> None [abstract]", True),
    ],
)
def test_an_addition_leaves_plugins_as_they_are(more: str, breach: bool) -> None:
    """Hooks may give more, models and functions take more that has a default."""
    before = facts()
    assert breaches(before, [*before, more]) == ([more] if breach else [])


@pytest.mark.parametrize("number", [1, -1])
def test_what_is_gone_is_a_breach(number: int) -> None:
    before = facts()
    now = [line for line in before if line != before[number]]
    assert breaches(before, now) == [before[number]]


def test_the_hook_api_only_grows_within_a_major_version(refresh_golden: bool) -> None:
    now = facts()
    before = GOLDEN.read_text().splitlines() if GOLDEN.exists() else [HEADER]
    if refresh_golden:
        if before[0] == HEADER:
            assert breaches(before, now) == [], "keep what is promised, or raise HOOK_API"
        GOLDEN.write_text("".join(f"{line}\n" for line in now))
        before = now
    assert now == before, "an addition: `make golden`; a change or removal needs another HOOK_API"


def test_every_model_is_made_with_keywords_and_checked() -> None:
    """So that a field can be added anywhere, and a wrong value is found where it is made."""
    classes = filter(inspect.isclass, map(api.__dict__.get, api.__all__))
    models = [kind for kind in classes if attrs.has(kind)]
    assert models
    fields = [field for model in models for field in attrs.fields(model)]
    assert [field for field in fields if not field.kw_only or field.validator is None] == []


def test_every_type_that_a_hook_names_is_behind_the_door() -> None:
    words = {
        word
        for hook in hookspecs.HOOKS
        for word in re.findall(r"\b[A-Z]\w+", _signature(getattr(hookspecs, hook)))
    }
    foreign = {"Any", "Element", "ElementTree", "Mapping", "None", "Path", "Sequence"}
    assert words - foreign <= set(api.__all__)
