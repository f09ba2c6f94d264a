"""Merge what several plugins give to cloud-init."""

from collections.abc import Sequence
from typing import Any

from virtlet.errors import PluginError
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.plain import UnquotedError, plain

HOOK = "virtlet_cloud_init"
MAX_SIZE = 32 << 20
"""Of one plugin's documents, as `plain` counts it."""


def merge(parts: Sequence[tuple[str, CloudInitPart]]) -> CloudInit:
    """One set of documents out of all plugins' parts.

    Mappings recurse, lists append in the order of the parts, equal scalars agree. A top-level key
    of user-data that a part overrides is that part's alone.

    Args:
        parts: (plugin, its part) in the order of registration.

    Raises:
        PluginError: two plugins set one key differently, or both give a script or a network
            configuration, or one gives what JSON cannot express. Keys are named, values never.
    """
    meta_data, user_data = _Document("meta-data"), _Document("user-data")
    owners = _overrides(parts)
    for plugin, part in parts:
        meta_data.add(plugin, part.meta_data)
        user_data.add(
            plugin, {k: v for k, v in part.user_data.items() if owners.get(k, plugin) == plugin}
        )
    network = [
        (plugin, _plain(plugin, "network configuration", part.network_config))
        for plugin, part in parts
    ]
    return CloudInit(
        meta_data=meta_data.content,
        user_data=user_data.content,
        script=_only([(p, part.script) for p, part in parts], "user-data script"),
        network_config=_only(network, "network configuration"),
    )


def _overrides(parts: Sequence[tuple[str, CloudInitPart]]) -> dict[str, str]:
    """Overridden top-level key of user-data to the plugin it belongs to."""
    owners: dict[str, str] = {}
    for plugin, part in parts:
        for key in sorted(part.overrides):
            if key in owners:
                raise _clash(owners[key], plugin, f"both override user-data key {key!r}")
            if key in part.user_data:
                owners[key] = plugin
    return owners


class _Document:
    """A mapping that is being merged, with the plugin that set each key."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.content: dict[str, Any] = {}
        self._owners: dict[tuple[str, ...], str] = {}

    def add(self, plugin: str, addition: Any) -> None:
        self._add(plugin, self.content, _plain(plugin, self._name, addition), ())

    def _add(
        self, plugin: str, target: dict[str, Any], addition: dict[str, Any], at: tuple[str, ...]
    ) -> None:
        for key, value in addition.items():
            path = (*at, key)
            if key not in target:
                target[key] = value
                self._own(plugin, value, path)
            elif isinstance(value, dict) and isinstance(target[key], dict):
                self._add(plugin, target[key], value, path)
            elif isinstance(value, list) and isinstance(target[key], list):
                target[key] += value
            elif type(value) is not type(target[key]) or value != target[key]:
                where = ".".join(path)
                problem = f"both set {self._name} key {where!r}, to different values"
                raise _clash(self._owners[path], plugin, problem)

    def _own(self, plugin: str, value: Any, path: tuple[str, ...]) -> None:
        self._owners[path] = plugin
        if isinstance(value, dict):
            for key, item in value.items():
                self._own(plugin, item, (*path, key))


def _plain(plugin: str, what: str, value: Any) -> Any:
    try:
        return plain(value, MAX_SIZE)
    except UnquotedError as error:
        raise PluginError(
            plugin,
            HOOK,
            f"its {what} is no plain data: {error}",
            "let it return only mappings with text keys, lists, texts, numbers and booleans",
        ) from None


def _only(given: Sequence[tuple[str, Any]], what: str) -> Any:
    holders = [(plugin, value) for plugin, value in given if value is not None]
    if len(holders) > 1:
        raise _clash(holders[0][0], holders[1][0], f"both give a {what}")
    return holders[0][1] if holders else None


def _clash(first: str, second: str, problem: str) -> PluginError:
    return PluginError(
        f"{first} and {second}",
        HOOK,
        problem,
        "take one of the two out of the handler's `plugins`, or change the pod's annotations so "
        "that they agree",
    )
