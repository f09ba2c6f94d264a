"""What plugins are installed, and which of them serve what, by the configuration alone."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet import PROJECT
from virtlet.core.config.load import load
from virtlet.core.config.options import CORE_OPTIONS, DATA_DIR
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.plugin_package import quiet
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import BUILTIN_PACKAGE, Registry, discover, settings_of_departed
from virtlet.hookspecs import HOOKS
from virtlet.model.option import Annotation, Option

SERVED, OFF, REFUSED = "served", "off", "refused"

OF_THE_MANAGER = (
    "virtlet_options",
    "virtlet_annotations",
    "virtlet_configure",
    "virtlet_reconcile",
    "virtlet_shutdown",
)
"""Hooks that every usable plugin is called on, whatever handlers name it."""


@frozen(kw_only=True)
class Declared:
    """An option or annotation of a plugin."""

    name: str
    kind: str
    default: str
    help: str


@frozen(kw_only=True)
class Found:
    """An installed plugin."""

    name: str
    built_in: bool
    package: str
    version: str
    path: str
    """The file of its module; "" where it cannot be imported."""
    state: str
    """`served`, `off` or `refused`."""
    reason: str
    """Why it is refused, or off."""
    handlers: tuple[str, ...]
    """That it serves."""
    hooks: tuple[str, ...]
    options: tuple[Declared, ...]
    annotations: tuple[Declared, ...]


@frozen(kw_only=True)
class Handler:
    """A runtime handler of the configuration."""

    name: str
    problem: str
    """Why it cannot be served, or ""."""
    hooks: Mapping[str, tuple[str, ...]]
    """Hook to its plugins, in the order in which they are called."""


@frozen(kw_only=True)
class Inventory:
    """All of it."""

    config: str
    """The configuration file, or ""."""
    plugins: tuple[Found, ...]
    manager: Mapping[str, tuple[str, ...]]
    """Hook to its plugins, as Handler's, of hooks that no handler has a part in."""
    handlers: tuple[Handler, ...]


def take_inventory(file: Path | None, environment: Mapping[str, str]) -> Inventory:
    """Look at the installed plugins as a starting manager does, up to virtlet_configure.

    Raises:
        VirtletError: a built-in plugin is not usable, or the configuration file is wrong.
    """
    with quiet():
        registry = discover()
        hooks = Hooks(registry)
        options = hooks.options()
        annotations = hooks.annotations()
        settings = load(
            [*CORE_OPTIONS, *(option for _, option in options)],
            file=file,
            environment=environment,
            flags={},
            refused=registry.refused,
            departed=lambda data_dir: settings_of_departed(data_dir, registry),
        )
        hooks.govern(settings.sections.get("plugins", {}), settings[DATA_DIR])
        profiles = Profiles(settings.sections.get("handlers", {}), registry)
    handlers = [
        Handler(
            name=profile.handler,
            problem="",
            hooks={
                hook: order
                for hook in HOOKS
                if hook not in OF_THE_MANAGER and (order := hooks.order(hook, profile))
            },
        )
        for profile in profiles.all
    ]
    handlers += [Handler(name=n, problem=why, hooks={}) for n, why in profiles.broken.items()]
    serving = {profile.handler: profile.plugins for profile in profiles.all}
    found = _sorted(entry_points(group=PROJECT))
    plugins = []
    for entry in found:
        mine = tuple(handler for handler, names in serving.items() if entry.name in names)
        state, reason = _state(entry, registry, mine)
        plugins.append(
            Found(
                name=entry.name,
                built_in=entry.value.startswith(BUILTIN_PACKAGE),
                package=entry.dist.name if entry.dist else "",
                version=entry.dist.version if entry.dist else "",
                path=_path(entry, registry),
                state=state,
                reason=reason,
                handlers=mine,
                hooks=tuple(_hooks(entry.name, registry)),
                options=tuple(_option(o) for name, o in options if name == entry.name),
                annotations=tuple(_annotation(a) for name, a in annotations if name == entry.name),
            )
        )
    return Inventory(
        config=str(file or ""),
        plugins=tuple(plugins),
        manager={hook: hooks.order(hook) for hook in OF_THE_MANAGER},
        handlers=tuple(handlers),
    )


def _sorted(entries: Any) -> list[EntryPoint]:
    return sorted(entries, key=lambda e: (not e.value.startswith(BUILTIN_PACKAGE), e.name))


def _state(entry: EntryPoint, registry: Registry, handlers: tuple[str, ...]) -> tuple[str, str]:
    if entry.name in registry.refused:
        return REFUSED, registry.refused[entry.name]
    if handlers:
        return SERVED, ""
    if entry.value.startswith(BUILTIN_PACKAGE):
        return OFF, "every handler leaves it out"
    return OFF, "no handler names it in its `plugins`"


def _path(entry: EntryPoint, registry: Registry) -> str:
    plugin = registry.manager.get_plugin(entry.name)
    name = plugin.__name__ if inspect.ismodule(plugin) else entry.module
    return getattr(sys.modules.get(name), "__file__", None) or ""


def _hooks(plugin: str, registry: Registry) -> Iterator[str]:
    for hook in HOOKS:
        callers = getattr(registry.manager.hook, hook).get_hookimpls()
        if any(impl.plugin_name == plugin for impl in callers):
            yield hook


def _option(option: Option[Any]) -> Declared:
    return Declared(
        name=option.field, kind=option.kind.name, default=option.default, help=option.help
    )


def _annotation(annotation: Annotation[Any]) -> Declared:
    return Declared(
        name=annotation.name,
        kind=annotation.kind.name,
        default="" if annotation.default is None else str(annotation.default),
        help=annotation.help,
    )
