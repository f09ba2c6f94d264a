"""Finding plugins by entry point, refusing what cannot work, and knowing what is gone."""

import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import cattrs
import pluggy
from attrs import define, field, frozen

from virtlet import PROJECT, hookspecs
from virtlet.core.hooks import hook_contract
from virtlet.core.hooks.blame import BREAKS
from virtlet.core.log_setup import text_of
from virtlet.core.paths import Paths
from virtlet.host.files import write_atomically
from virtlet.model.option import Option

log = logging.getLogger(__name__)

BUILTIN_PACKAGE = "virtlet.plugins."
"""Entry points into this package are the built-in plugins: active for every handler."""


@frozen
class Seen:
    """What is kept of a third-party plugin for when it is not installed any more."""

    package: str
    """Name of the distribution that had it, or ""."""
    fields: tuple[str, ...]
    """Settings that it declared."""
    inverses: tuple[str, ...]
    """Hooks it had that undo an effect."""

    @property
    def of_package(self) -> str:
        """The package, for messages, after the plugin's name."""
        return f" (package {self.package})" if self.package else ""


@define
class Registry:
    """The plugins of this node."""

    manager: pluggy.PluginManager
    builtin: tuple[str, ...] = ()
    """Names of the built-in plugins."""
    extra: tuple[str, ...] = ()
    """Names of the usable third-party plugins: active for the handlers that name them."""
    refused: dict[str, str] = field(factory=dict)
    """Name of an unusable plugin to the reason, with the remedy."""
    packages: dict[str, str] = field(factory=dict)
    """Name of a plugin to that of the installed package it came with."""
    departed: dict[str, Seen] = field(factory=dict)
    """Plugins that are not usable now, and what is known of them from before."""
    forgotten: frozenset[str] = frozenset()
    """Plugins whose effects are forgotten where they are not there to undo them."""

    @property
    def everyone(self) -> tuple[str, ...]:
        """All usable plugins: the built-in ones by name, then the others by name."""
        return self.builtin + self.extra

    def refuse(self, plugin: str, why: str) -> None:
        """Do without a third-party plugin from now on; the handlers that name it are not served."""
        self.manager.unregister(name=plugin)
        self.extra = tuple(name for name in self.extra if name != plugin)
        self.note(plugin, why)

    def implementing(self, hook: str) -> dict[str, pluggy.HookImpl]:
        """Plugin to its implementation of a hook."""
        caller: pluggy.HookCaller = getattr(self.manager.hook, hook)
        return {made.plugin_name: made for made in caller.get_hookimpls()}

    def forgets(self, plugin: str) -> bool:
        """Whether a plugin is not usable, and the operator has given up what it made."""
        return plugin in self.forgotten and not self.manager.has_plugin(plugin)

    def named(self, plugin: str) -> str:
        """A plugin with the package that it came with, for messages."""
        package = self.packages.get(plugin)
        return f"plugin {plugin!r}" + (f" (package {package})" if package else "")

    def why_missing(self, plugin: str) -> str:
        """Why a plugin is not usable, and the ways out; for messages."""
        seen = self.departed.get(plugin)
        why = self.refused.get(plugin)
        return (
            f"plugin {plugin!r}{seen.of_package if seen else ''} "
            + (f"was refused: {why}" if why else "is not installed any more: install it again")
            + "; or, to leave on the node what it made, name it in the setting forgottenPlugins; "
            "then restart the manager"
        )

    def logging_packages(self) -> tuple[str, ...]:
        """The top-level Python packages of third-party plugins, whose logs are ours too."""
        plugins = (self.manager.get_plugin(name) for name in self.extra)
        modules = (
            plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
            for plugin in plugins
            if plugin is not None
        )
        return tuple(dict.fromkeys(module.partition(".")[0] for module in modules))

    def note(self, plugin: str, why: str) -> None:
        """Remember and log a refusal."""
        self.refused[plugin] = why
        # All in the message: this can come before the logs are set up, as a line on the terminal.
        log.error("plugin %r refused: %s", plugin, why, extra={"plugin": plugin})


def discover(entries: Iterable[EntryPoint] | None = None) -> Registry:
    """Load and check all installed plugins.

    A plugin that cannot work is left out, logged and remembered in `refused`; the others go on.

    Args:
        entries: entry points to load instead of the installed ones of group `virtlet`.
    """
    registry = Registry(pluggy.PluginManager(PROJECT))
    registry.manager.add_hookspecs(hookspecs)
    found = list(entries if entries is not None else entry_points(group=PROJECT))
    # Registration order is part of the contract: built-ins first, then the others by name.
    found.sort(key=lambda entry: (not entry.value.startswith(BUILTIN_PACKAGE), entry.name))
    for entry in found:
        problem = _register(registry, entry)
        if problem:
            registry.note(entry.name, problem)
        elif entry.value.startswith(BUILTIN_PACKAGE):
            registry.builtin += (entry.name,)
        else:
            registry.extra += (entry.name,)
    return registry


def _register(registry: Registry, entry: EntryPoint) -> str:
    """Register one plugin; "" or why it is refused."""
    manager, package = registry.manager, entry.dist.name if entry.dist else ""
    if manager.has_plugin(entry.name):
        both = " and ".join(filter(None, (registry.packages.get(entry.name), package)))
        return (
            f"two installed packages{both and f' ({both})'} offer a plugin named {entry.name!r}: "
            "uninstall one of them"
        )
    if package:
        registry.packages[entry.name] = package
    try:
        plugin = entry.load()
        if inspect.isclass(plugin):
            plugin = plugin()
    except BREAKS as error:
        if _is_ctrl_c(error):
            raise
        what = f"{type(error).__name__}: {text_of(error)}"
        return f"importing {entry.value} raised {what}; mend or uninstall it"
    try:
        found = hook_contract.flaws(plugin)
        doubts = [] if found else hook_contract.doubts(plugin)
    except BREAKS as error:
        if _is_ctrl_c(error):
            raise
        what = f"{type(error).__name__}: {text_of(error)}"
        return f"looking at {entry.value} raised {what}; mend or uninstall it"
    if found:
        return "; ".join(found)
    try:
        manager.register(plugin, entry.name)
    except ValueError:
        return f"{entry.value} is registered under another name already: one entry point is enough"
    for doubt in doubts:
        log.warning("plugin %r: %s", entry.name, doubt, extra={"plugin": entry.name})
    return ""


def _is_ctrl_c(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt)


# Plugins that were installed once and are not usable now: the data directory keeps, of every
# third-party plugin that the manager ran with, what is needed when it is gone.


def settings_of_departed(data_dir: Path, registry: Registry) -> Mapping[str, str]:
    """Setting to the plugin that declared it, for messages, of all that are not installed now."""
    return {
        field: f"plugin {plugin!r}{seen.of_package}"
        for plugin, seen in _read(Paths(data_dir).plugins).items()
        if not registry.manager.has_plugin(plugin) and plugin not in registry.refused
        for field in seen.fields
    }


def ever_installed(data_dir: Path) -> frozenset[str]:
    """Names of all plugins that the manager ran with."""
    return frozenset(_read(Paths(data_dir).plugins))


def recall(data_dir: Path, registry: Registry) -> None:
    """Tell the registry what is known of plugins that are not usable now."""
    for plugin, seen in _read(Paths(data_dir).plugins).items():
        if not registry.manager.has_plugin(plugin):
            registry.departed[plugin] = seen


def remember(
    data_dir: Path, registry: Registry, options: Iterable[tuple[str, Option[Any]]]
) -> None:
    """Write down what is known of the plugins that are usable now, and what was known before."""
    fields: dict[str, list[str]] = {}
    for plugin, option in options:
        fields.setdefault(plugin, []).append(option.field)
    known = _read(Paths(data_dir).plugins)
    new = known | {
        plugin: Seen(
            registry.packages.get(plugin, ""),
            tuple(fields.get(plugin, ())),
            tuple(h for h in hookspecs.INVERSES.values() if plugin in registry.implementing(h)),
        )
        for plugin in registry.extra
    }
    if new == known:
        return
    text = json.dumps(cattrs.unstructure(new), indent=1)
    try:
        write_atomically(Paths(data_dir).plugins, text.encode())
    except OSError as error:
        log.warning("plugins not remembered", extra={"problem": str(error)})


def _read(file: Path) -> dict[str, Seen]:
    try:
        return cattrs.structure(json.loads(file.read_bytes()), dict[str, Seen])
    except FileNotFoundError:
        return {}
    except Exception as error:
        log.warning("%s cannot be read and is passed over: %s", file, type(error).__name__)
        return {}
