"""The hooks of the start, which call every installed plugin, also those that no handler names.

So a third-party plugin that fails here is refused, with the handlers that name it; nothing else is
touched by it. Without a built-in plugin the manager does not start.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from virtlet.core.config.load import SECTIONS, fill
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.blame import BREAKS, is_foreign
from virtlet.core.hooks.caller import ANNOTATIONS, CONFIGURE, OPTIONS, RECONCILE, Caller
from virtlet.core.hooks.registry import Registry
from virtlet.errors import PluginError, VirtletError
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm

_FLAG = re.compile(r"--[a-zA-Z0-9][a-zA-Z0-9-]*")
_PLACES = {"data_dir": "/", "socket_dir": "/"}


def collect_options(registry: Registry, caller: Caller) -> list[tuple[str, Option[Any]]]:
    """(plugin, option) of every usable plugin's declared options.

    Raises:
        VirtletError: a built-in plugin's cannot be had.
    """
    taken = {name: "the core" for option in CORE_OPTIONS for name in _names(option)}
    taken |= dict.fromkeys((*SECTIONS, "file", "--config", "--help", "--v"), "the core")
    return _collect(registry, caller, OPTIONS, _names, taken, _flaw)


def collect_annotations(registry: Registry, caller: Caller) -> list[tuple[str, Annotation[Any]]]:
    """(plugin, annotation) of every usable plugin's declared annotations.

    Raises:
        VirtletError: a built-in plugin's cannot be had.
    """
    return _collect(registry, caller, ANNOTATIONS, lambda annotation: (annotation.name,), {})


def _collect(
    registry: Registry,
    caller: Caller,
    hook: str,
    names: Callable[[Any], tuple[str, ...]],
    taken: dict[str, str],
    inspect: Callable[[Any], str] = lambda thing: "",
) -> list[tuple[str, Any]]:
    """(plugin, what it declares); a plugin that declares a name of another is refused."""

    def check(plugin: str, declared: Sequence[Any] | None) -> str:
        added: set[str] = set()
        for thing in declared or ():
            for name in names(thing):
                owner = registry.named(plugin) if name in added else taken.get(name)
                if owner:
                    return f"declares {name}, which {owner} declares too"
            if problem := inspect(thing):
                return problem
            added |= {*names(thing)}
        taken.update(dict.fromkeys(added, registry.named(plugin)))
        return ""

    asked = caller.in_turn(
        hook,
        caller.order(hook, registry.everyone),
        partial(caller.call, hook),
        check,
        partial(_refuse, registry, hook),
    )
    return [(plugin, thing) for plugin, declared in asked for thing in declared]


def configure(registry: Registry, caller: Caller, settings: Settings, node: Node) -> None:
    """Hand every plugin its settings.

    Raises:
        VirtletError: a built-in plugin does not take them.
    """
    _tell_all(registry, caller, CONFIGURE, settings=settings, node=node)


def reconcile(registry: Registry, caller: Caller, pods: Sequence[Pod], vms: Sequence[Vm]) -> None:
    """Tell every plugin which pods and VMs there are.

    Raises:
        VirtletError: a built-in plugin cannot look after what it keeps for them.
    """
    _tell_all(registry, caller, RECONCILE, pods=pods, vms=vms)


def _tell_all(registry: Registry, caller: Caller, hook: str, **arguments: Any) -> None:
    everyone = caller.order(hook, registry.everyone)
    tell, refuse = partial(caller.call, hook, **arguments), partial(_refuse, registry, hook)
    for _ in caller.in_turn(hook, everyone, tell, failed=refuse):
        pass


def _refuse(registry: Registry, hook: str, plugin: str, error: VirtletError) -> None:
    if plugin in registry.builtin:
        raise error
    problem = error.problem if isinstance(error, PluginError) else str(error)
    package = registry.packages.get(plugin)
    what = f"its package {package}" if package else "it"
    registry.refuse(plugin, f"{hook}: {problem}; mend the plugin or uninstall {what}")


def _names(option: Option[Any]) -> tuple[str, ...]:
    return option.field, option.flag, option.env


def _flaw(option: Option[Any]) -> str:
    """What is wrong with a declared option, as a clause for a message; or ""."""
    if not (option.field.isidentifier() and _FLAG.fullmatch(option.flag) and option.env):
        return (
            f"declares the option {option.field!r} with the flag {option.flag!r} and the "
            f"variable {option.env!r}: wanted are names like myOption, --my-option and MY_OPTION"
        )
    try:
        option.kind.parse(fill(option.default, _PLACES))
    except BREAKS as error:
        if not is_foreign(error):
            raise
        return f"declares the option {option.field} with a default that its kind does not take"
    return ""
