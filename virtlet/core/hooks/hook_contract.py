"""What is wrong with a plugin without calling it, and with its answers beyond their types.

Discovery refuses a plugin that has flaws and logs its doubts; `virtlet plugins check` and the test
kit show both to the author.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pluggy
from attrs import frozen

from virtlet import HOOK_API, PROJECT, hookspecs
from virtlet.model.image import RecognizedImage
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.model.strict_ip import ip_address, ip_interface, ip_network

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


# What is wrong with an answer beyond its types: a clause for a message; "" for nothing.

_UNICAST_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[^\s,\"]+")
_BOUNDS = (("mtu", 68, 65535), ("queues", 1, 256), ("boot_order", 0, 1 << 16))


def recognition_check(file: Path) -> Callable[[str, RecognizedImage | None], str]:
    """What says what is wrong with how a plugin recognised a file, which it may only read."""
    before = _state(file)

    def check(plugin: str, found: RecognizedImage | None) -> str:
        if _state(file) != before:
            return "changed the file, which is for reading alone"
        if found is not None and (not found.format or found.virtual_size < 0):
            return "returned a RecognizedImage without a format or of a negative size"
        return ""

    return check


def _state(file: Path) -> tuple[int, int, int] | None:
    """What differs if a file was changed, replaced or removed."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def network_problem(network: Network) -> str:
    """What makes a network useless."""
    for number, nic in enumerate(network.nics):
        flaw = _flaw_of(nic)
        if flaw:
            return f"returned a Network whose nics[{number}].{flaw}"
    if len({nic.mac for nic in network.nics}) < len(network.nics):
        return "returned a Network whose nics have one MAC address twice"
    if not _is_dns(network.dns):
        return "returned a Network whose dns has a server or search domain that cannot be"
    return ""


def adjustment_problem(before: Network, after: Network) -> str:
    """What a plugin may not make of a network."""
    changed = _changed(before, after)
    if changed:
        return f"changed {changed}, which is left to the plugin that made the network"
    return network_problem(after)


def _changed(before: Network, after: Network) -> str:
    """The first difference in what undoes the network, or connects it; or ""."""
    for name in ("netns", "details"):
        if getattr(before, name) != getattr(after, name):
            return name
    if len(before.nics) != len(after.nics):
        return "the number of nics"
    for number, (old, new) in enumerate(zip(before.nics, after.nics, strict=True)):
        for name in ("name", "kind", "device"):
            if getattr(old, name) != getattr(new, name):
                return f"nics[{number}].{name}"
    return ""


def _flaw_of(nic: Nic) -> str:
    if not _UNICAST_MAC.fullmatch(nic.mac):
        return "mac is not a unicast MAC address in lower case with colons"
    for name, least, most in _BOUNDS:
        if getattr(nic, name) < least:
            return f"{name} is below {least}"
        if getattr(nic, name) > most:
            return f"{name} is above {most}"
    if not all(map(_is_cidr, nic.addresses)):
        return "addresses has one that is not in CIDR form"
    if not all(map(_can_be, nic.routes)):
        return "routes has one whose destination or gateway cannot be"
    return ""


def _is_cidr(address: str) -> bool:
    try:
        ip_interface(address)
    except ValueError:
        return False
    return "/" in address


def _can_be(route: Route) -> bool:
    """Whether a route has a destination, and a gateway of the same family if any."""
    try:
        version = ip_network(route.destination).version
        return not route.gateway or ip_address(route.gateway).version == version
    except ValueError:
        return False


def _is_dns(dns: DnsConfig) -> bool:
    """Whether a resolver, and the configuration that names its servers, can read it."""
    try:
        for server in dns.servers:
            ip_address(server)
    except ValueError:
        return False
    return all(map(_WORD.fullmatch, dns.searches))
