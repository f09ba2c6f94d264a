"""The hooks of the start, which call every installed plugin, also those that no handler names.

So a third-party plugin that fails here is refused, with the handlers that name it; nothing else is
touched by it. Without a built-in plugin the manager does not start.
"""

import contextvars
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from virtlet.core.config.load import SECTIONS, fill
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.blame import BREAKS, is_foreign, logged, returned
from virtlet.core.hooks.caller import Caller
from virtlet.core.hooks.registry import Registry
from virtlet.errors import PluginError, VirtletError
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.vm import Vm

OPTIONS, ANNOTATIONS = "virtlet_options", "virtlet_annotations"
CONFIGURE, RECONCILE = "virtlet_configure", "virtlet_reconcile"

_FLAG = re.compile(r"--[a-zA-Z0-9][a-zA-Z0-9-]*")
_PLACES = {"data_dir": "/", "socket_dir": "/"}


def collect_options(registry: Registry, caller: Caller) -> list[tuple[str, Option[Any]]]:
    """(plugin, option) of every usable plugin's declared options.

    Raises:
        VirtletError: a built-in plugin's cannot be had.
    """
    taken = {name: "the core" for option in CORE_OPTIONS for name in _names(option)}
    taken |= dict.fromkeys((*SECTIONS, "file", "--config", "--help", "--v"), "the core")
    return _collect(registry, caller, OPTIONS, _names, taken, _inspect)


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
    inspect: Callable[[str, Any], None] = lambda plugin, thing: None,
) -> list[tuple[str, Any]]:
    """(plugin, what it declares); a plugin that declares a name of another is refused."""
    found: list[tuple[str, Any]] = []
    for plugin in caller.providers(hook, registry.builtin + registry.extra):
        try:
            declared = caller.call(hook, plugin) or ()
            added: dict[str, str] = {}
            for thing in declared:
                for name in names(thing):
                    owner = taken.get(name) or added.get(name)
                    if owner:
                        raise returned(plugin, hook, f"declares {name}, which {owner} declares too")
                inspect(plugin, thing)
                added |= dict.fromkeys(names(thing), registry.named(plugin))
        except VirtletError as error:
            _refuse(registry, plugin, hook, error)
        else:
            taken |= added
            found += [(plugin, thing) for thing in declared]
    return found


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
    for plugin in caller.providers(hook, registry.builtin + registry.extra):
        try:
            with logged():
                if plugin in registry.builtin:
                    caller.call(hook, plugin, **arguments)
                else:
                    _call_in_time(caller, hook, plugin, arguments)
        except VirtletError as error:
            _refuse(registry, plugin, hook, error)


def _call_in_time(caller: Caller, hook: str, plugin: str, arguments: Mapping[str, Any]) -> None:
    """Call a third-party plugin on a thread of its own, which is left behind if it hangs.

    Raises:
        VirtletError: what the call raised, or that it has not come back within its time limit.
    """
    ended: Future[None] = Future()

    def call() -> None:
        try:
            caller.call(hook, plugin, **arguments)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(call,), name="start-up", daemon=True).start()
    limit = caller.limit(plugin, hook)
    try:
        ended.result(limit)
    except TimeoutError:
        problem = f"has not returned for {limit:g} s (hookPatience)"
        raise returned(plugin, hook, problem) from None


def _refuse(registry: Registry, plugin: str, hook: str, error: VirtletError) -> None:
    if plugin in registry.builtin:
        raise error
    problem = error.problem if isinstance(error, PluginError) else str(error)
    package = registry.packages.get(plugin)
    what = f"its package {package}" if package else "it"
    registry.refuse(plugin, f"{hook}: {problem}; mend the plugin or uninstall {what}")


def _names(option: Option[Any]) -> tuple[str, ...]:
    return option.field, option.flag, option.env


def _inspect(plugin: str, option: Option[Any]) -> None:
    if not (option.field.isidentifier() and _FLAG.fullmatch(option.flag) and option.env):
        problem = (
            f"declares the option {option.field!r} with the flag {option.flag!r} and the "
            f"variable {option.env!r}: wanted are names like myOption, --my-option and MY_OPTION"
        )
        raise returned(plugin, OPTIONS, problem)
    try:
        option.kind.parse(fill(option.default, _PLACES))
    except BREAKS as error:
        if not is_foreign(error):
            raise
        problem = f"declares the option {option.field} with a default that its kind does not take"
        raise returned(plugin, OPTIONS, problem) from error
