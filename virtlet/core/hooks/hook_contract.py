"""What can be said of a plugin without calling or registering it.

Discovery refuses a plugin that has flaws and logs its doubts; `virtlet plugins check` and the test
kit show both to the author.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pluggy
from attrs import frozen

from virtlet import HOOK_API, PROJECT, hookspecs

ADJUSTING: Mapping[str, str] = {
    "virtlet_flavor": "virtlet_adjust_flavor",
    "virtlet_setup_network": "virtlet_adjust_network",
    "virtlet_render_domain": "virtlet_customize_domain",
}
"""Hook to the one that changes what another plugin answered to it."""

_MARKS = pluggy.PluginManager(PROJECT)
"""Reads the marks of implementations; nothing is registered here."""


@frozen
class _Implementation:
    hook: str
    function: Callable[..., Any]
    bound: bool
    """Whether its first argument is the plugin."""
    marks: Mapping[str, Any]


def flaws(plugin: object) -> list[str]:
    """Why a plugin cannot be used; empty when it can.

    Args:
        plugin: the class, an instance of it, or a module.

    Returns:
        One line for each flaw, with what to do about it.
    """
    found = [*_flaws_of_whole(plugin)]
    seen: set[str] = set()
    for made in _implementations(plugin):
        if made.hook in seen:
            found.append(f"{made.hook} is implemented twice: keep one of the functions")
        seen.add(made.hook)
        if made.hook in hookspecs.HOOKS:
            found += _flaws_of_hook(made)
        elif not made.marks.get("optionalhook"):
            found.append(f"{made.hook} is not a hook: {_near(made.hook, 'see docs/hooks.md')}")
    return found


def doubts(plugin: object) -> list[str]:
    """What a plugin may do and probably does not mean; as `flaws`."""
    having = {made.hook for made in _implementations(plugin)}
    found = [
        f"{effect} has no inverse: implement {inverse}, unless there is nothing to undo"
        for effect, inverse in hookspecs.INVERSES.items()
        if effect in having and inverse not in having
    ]
    for name in dir(plugin):
        if name.startswith(f"{PROJECT}_") and _marks(plugin, name) is None:
            known = name in hookspecs.HOOKS
            remedy = "mark it with @hookimpl" if known else _near(name, "give it another name")
            found.append(f"{name} looks like a hook and is never called: {remedy}")
    if not having:
        found.append("it has no hook: mark its methods with @hookimpl")
    return found


def _flaws_of_whole(plugin: object) -> Iterator[str]:
    api = getattr(plugin, "VIRTLET_HOOK_API", None)
    if api is None:
        yield (
            "it does not say for which version of the plugin API it was built: add the line "
            f"`VIRTLET_HOOK_API = {HOOK_API}` to it"
        )
    elif api != HOOK_API:
        yield (
            f"it was built for version {api!r} of the plugin API and this Virtlet has version "
            f"{HOOK_API}: install a release of the plugin for version {HOOK_API}"
        )
    kind = plugin if inspect.isclass(plugin) else type(plugin)
    if kind.__hash__ is not object.__hash__:
        # Plugins are told apart by identity: two that are equal would be taken for one.
        yield (f"{kind.__name__} compares by value: write a class without __eq__ (attrs: eq=False)")


def _implementations(plugin: object) -> Iterator[_Implementation]:
    for name in dir(plugin):
        marks = _marks(plugin, name)
        if marks is None:
            continue
        function = getattr(plugin, name)
        bound = inspect.ismethod(function) or (
            inspect.isclass(plugin) and inspect.isfunction(inspect.getattr_static(plugin, name))
        )
        plain = getattr(function, "__func__", function)
        yield _Implementation(marks.get("specname") or name, plain, bound, marks)


def _marks(plugin: object, name: str) -> Mapping[str, Any] | None:
    """The marks that @hookimpl put on an attribute; None for an attribute without it."""
    return _MARKS.parse_hookimpl_opts(plugin, name)


def _near(name: str, otherwise: str) -> str:
    # Without the beginning that all have, which would make them all alike.
    words = {hook.removeprefix(f"{PROJECT}_"): hook for hook in hookspecs.HOOKS}
    near = get_close_matches(name.removeprefix(f"{PROJECT}_"), words, 1, 0.7)
    return f"did you mean {words[near[0]]}?" if near else otherwise


def _flaws_of_hook(made: _Implementation) -> Iterator[str]:
    hook, function = made.hook, made.function
    if made.marks.get("wrapper") or made.marks.get("hookwrapper"):
        instead = ADJUSTING.get(hook)
        yield f"{hook} is a wrapper, which version {HOOK_API} of the plugin API does not have: " + (
            f"implement {instead} to change what another plugin answers"
            if instead
            else f"implement {hook} itself, without yield"
        )
        return
    for mark in ("tryfirst", "trylast"):
        if made.marks.get(mark):
            yield f"{hook} has the mark {mark}: take it away, the handler's `plugins:` is the order"
    if inspect.iscoroutinefunction(function):
        yield f"{hook} is a coroutine: write a plain function, which runs on a worker thread"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"{hook} is a generator: write a plain function that returns its answer"
    else:
        yield from _flaws_of_types(hook, function)
    yield from _flaws_of_arguments(made)


def _flaws_of_arguments(made: _Implementation) -> Iterator[str]:
    hook, known = made.hook, [*_types(made.hook)][:-1]
    wanted = ", ".join([*(["self"] if made.bound else []), *known])
    remedy = f"write `def {hook}({wanted})`, with those of the arguments that you use"
    parameters = [*inspect.signature(made.function).parameters.values()]
    if made.bound:
        if not parameters or parameters[0].name in known:
            yield f"{hook} has no self: {remedy}"
        parameters = parameters[1:]
    for parameter in parameters:
        name = parameter.name
        plain = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if not plain or parameter.default is not parameter.empty:
            yield f"{hook} takes `{parameter}`, which is never passed: {remedy}"
        elif name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"{hook} takes the argument {name}, which it does not have{hint}: {remedy}"


def _flaws_of_types(hook: str, function: Callable[..., Any]) -> Iterator[str]:
    try:
        given = get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        return  # A name that is imported for type checkers alone.
    for name, wanted in _types(hook).items():
        kind = given.get(name, Any)
        if name == "return" and not _fits(kind, wanted):
            yield f"{hook} returns {_shown(kind)}: it has to return {_shown(wanted)}"
        elif name != "return" and not _fits(wanted, kind):
            yield f"{hook} takes {name} as {_shown(kind)}: it is {_shown(wanted)}"


@cache
def _types(hook: str) -> Mapping[str, Any]:
    """Argument to its type, in order, and `return` as the last."""
    return get_type_hints(getattr(hookspecs, hook))


def _fits(kind: Any, wanted: Any) -> bool:
    """Whether a value of one type is one of another; where that is not clear, it is."""
    if wanted in (Any, object) or kind is Any or isinstance(kind, TypeVar):
        return True
    if get_origin(kind) in (Union, UnionType):
        return all(_fits(part, wanted) for part in get_args(kind))
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(kind, part) for part in get_args(wanted))
    outer, outer_wanted = get_origin(kind) or kind, get_origin(wanted) or wanted
    try:
        if not issubclass(outer, outer_wanted):
            return False
    except TypeError:
        return True
    inner = [part for part in get_args(kind) if part is not ...]
    inner_wanted = [part for part in get_args(wanted) if part is not ...]
    return len(inner) != len(inner_wanted) or all(map(_fits, inner, inner_wanted))


def _shown(kind: Any) -> str:
    """A type without the modules that its names come from."""
    kind = None if kind is NoneType else kind
    return re.sub(r"\b(?:\w+\.)+", "", inspect.formatannotation(kind))
