"""The configuration's `plugins` section: what the operator says of single plugins.

It looks like `NAME: {hookPatience: SECONDS, onFailure: refuse}`; instead of a number,
`hookPatience` may be a mapping of hooks to seconds.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from attrs import frozen

from virtlet.core.config.options import HOOK_PATIENCE
from virtlet.core.hooks.registry import Registry
from virtlet.errors import InvalidArgument
from virtlet.hookspecs import HOOKS

log = logging.getLogger(__name__)

PATIENCE, FAILURE = "hookPatience", "onFailure"
REFUSE, LOG = "refuse", "log"


@frozen
class Policy:
    """What holds for plugins that the configuration names."""

    patience: Mapping[tuple[str, str], float] = MappingProxyType({})
    """(plugin, hook) to seconds; where the hook is "", for all hooks of the plugin."""
    lenient: frozenset[str] = frozenset()
    """Plugins whose failing optional hooks are logged and passed over."""


def read_policy(
    section: Mapping[Any, Any], registry: Registry, departed: Collection[str]
) -> Policy:
    """The policy of a `plugins` section.

    Args:
        section: as it is in the configuration.
        registry: the plugins.
        departed: those that ran once and are not installed; what is said of them is passed over.

    Raises:
        InvalidArgument: something in it is wrong; says what, and where.
    """
    usable = registry.builtin + registry.extra
    patience: dict[tuple[str, str], float] = {}
    lenient = set()
    for plugin, said in section.items():
        where = f"configuration: plugins: {plugin!r}"
        if plugin not in usable:
            if plugin not in {*registry.refused, *departed}:
                raise InvalidArgument(f"{where} is not installed{_near(plugin, usable)}")
            log.warning("%s is passed over: the plugin is not usable", where)
            continue
        if not isinstance(said, Mapping):
            raise InvalidArgument(f"{where} must be a mapping with {PATIENCE} or {FAILURE}")
        for key, value in said.items():
            if key == PATIENCE:
                for hook, seconds in _limits(f"{where}: {key}", value).items():
                    patience[plugin, hook] = seconds
            elif key == FAILURE:
                if value not in (REFUSE, LOG):
                    raise InvalidArgument(f"{where}: {key} must be {REFUSE} or {LOG}")
                lenient |= {plugin} if value == LOG else set()
            else:
                known = _near(key, (PATIENCE, FAILURE))
                raise InvalidArgument(f"{where}: unknown key {key!r}{known}")
    return Policy(patience, frozenset(lenient))


def _limits(where: str, value: Any) -> dict[str, float]:
    """Hook to seconds; "" stands for all hooks."""
    limits: dict[str, float] = {}
    for hook, seconds in value.items() if isinstance(value, Mapping) else [("", value)]:
        if hook and hook not in HOOKS:
            raise InvalidArgument(f"{where}: {hook!r} is not a hook{_near(hook, HOOKS)}")
        try:
            limits[hook] = HOOK_PATIENCE.kind.parse(str(seconds))
        except ValueError as error:
            raise InvalidArgument(f"{where}: {error} (wanted: seconds)") from None
    return limits


def _near(word: Any, known: Iterable[str]) -> str:
    near = get_close_matches(str(word), known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
