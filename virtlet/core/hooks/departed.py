"""Plugins that were installed once and are not usable now: what is known of them.

The data directory keeps, of every third-party plugin that the manager ran with, what is needed when
it is gone: whose package it was, which settings were its own, and which effects it could undo.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cattrs

from virtlet import hookspecs
from virtlet.core.hooks.registry import Registry, Seen
from virtlet.host.files import write_atomically
from virtlet.model.option import Option

log = logging.getLogger(__name__)

FILE = "plugins.json"
"""Name of the file, below the data directory."""


def settings_of_departed(data_dir: Path, registry: Registry) -> Mapping[str, str]:
    """Setting to the plugin that declared it, for messages, of all that are not installed now."""
    return {
        field: f"plugin {plugin!r}{seen.of_package}"
        for plugin, seen in _read(data_dir / FILE).items()
        if not registry.manager.has_plugin(plugin) and plugin not in registry.refused
        for field in seen.fields
    }


def names(data_dir: Path) -> frozenset[str]:
    """Names of all plugins that the manager ran with."""
    return frozenset(_read(data_dir / FILE))


def recall(data_dir: Path, registry: Registry) -> None:
    """Tell the registry what is known of plugins that are not usable now."""
    for plugin, seen in _read(data_dir / FILE).items():
        if not registry.manager.has_plugin(plugin):
            registry.departed[plugin] = seen


def remember(
    data_dir: Path, registry: Registry, options: Iterable[tuple[str, Option[Any]]]
) -> None:
    """Write down what is known of the plugins that are usable now, and what was known before."""
    fields: dict[str, list[str]] = {}
    for plugin, option in options:
        fields.setdefault(plugin, []).append(option.field)
    known = _read(data_dir / FILE)
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
        write_atomically(data_dir / FILE, text.encode())
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
