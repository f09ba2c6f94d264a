"""What the configuration says about plugins: who serves a handler, and what holds for single ones.

The section `plugins` looks like `NAME: {hookPatience: SECONDS, onFailure: refuse}`; instead of a
number, `hookPatience` may be a mapping of hooks to seconds.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from attrs import frozen

from virtlet.core.config.options import HOOK_PATIENCE
from virtlet.core.hooks.registry import Registry
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.hookspecs import HOOKS
from virtlet.model.pod import Profile

log = logging.getLogger(__name__)

KEYS: Mapping[str, str] = {
    "plugins": "Third-party plugins that serve the handler, in the order in which they are asked",
    "without": "Built-in plugins that do not",
    "flavor": "The machine: see below",
}
"""Keys of a handler's section, with their meaning."""


class Profiles:
    """The handlers of the configuration's `handlers` section, the default one included.

    A section looks like `NAME: {plugins: [more, …], without: [built-in, …], flavor: {…}}`; the
    default handler's name is "". Built-in plugins are active unless a section leaves them out;
    third-party plugins are active only where a section names them, so that installing a package
    changes no running handler. The order of `plugins` is that of their say; see Profile.plugins.
    """

    def __init__(self, sections: Mapping[str, Any], registry: Registry) -> None:
        self._usable: dict[str, Profile] = {}
        self._broken: dict[str, str] = {}
        for handler, section in {"": {}, **sections}.items():
            self._add(handler, {} if section is None else section, registry)

    def _add(self, handler: str, section: Any, registry: Registry) -> None:
        where = f"configuration: handler {handler!r}"
        if not isinstance(section, Mapping):
            raise InvalidArgument(f"{where} must be a mapping with {', '.join(sorted(KEYS))}")
        unknown = set(map(str, section)) - set(KEYS)
        if unknown:
            raise InvalidArgument(
                f"{where}: unknown key {min(unknown)!r}; known: {', '.join(sorted(KEYS))}"
            )
        more, without = _names(where, section, "plugins"), _names(where, section, "without")
        flavor = {} if section.get("flavor") is None else section["flavor"]
        if not isinstance(flavor, Mapping):
            raise InvalidArgument(f"{where}: flavor must be a mapping")
        for name in more + without:
            if name in registry.refused:
                self._broken[handler] = f"its plugin {name!r} was refused: {registry.refused[name]}"
                return
            if name not in registry.builtin + registry.extra:
                self._broken[handler] = (
                    f"its plugin {name!r} is not installed; installed: "
                    f"{', '.join(registry.builtin + registry.extra)}"
                )
                return
        # The first of the list is asked first, and has the last word where everybody is called.
        names = [name for name in registry.builtin if name not in more] + list(reversed(more))
        active = tuple(name for name in names if name not in without)
        self._usable[handler] = Profile(
            handler=handler, plugins=active, flavor=MappingProxyType(dict(flavor))
        )

    @property
    def all(self) -> tuple[Profile, ...]:
        """The usable profiles, the default one first."""
        return tuple(self._usable[h] for h in sorted(self._usable))

    @property
    def broken(self) -> Mapping[str, str]:
        """Handler name to why it cannot be served."""
        return MappingProxyType(self._broken)

    def get(self, handler: str) -> Profile:
        """The profile of a handler.

        Raises:
            InvalidArgument: the configuration does not know the handler.
            FailedPrecondition: the handler's plugins are not usable.
        """
        if handler in self._broken:
            raise FailedPrecondition(
                f"handler {handler!r} cannot be served: {self._broken[handler]}"
            )
        try:
            return self._usable[handler]
        except KeyError:
            near = get_close_matches(handler, self._usable, 1)
            hint = f" (did you mean {near[0]!r}?)" if near and near[0] else ""
            raise InvalidArgument(
                f"unknown runtime handler {handler!r}{hint}; known handlers: "
                f"{', '.join(repr(h) for h in sorted(self._usable))}; add others under `handlers:` "
                "in the configuration"
            ) from None


def _names(where: str, section: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = [] if section.get(key) is None else section[key]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument(f"{where}: {key} must be a list of plugin names")
    if len(set(value)) < len(value):
        raise InvalidArgument(f"{where}: {key} names a plugin twice")
    return tuple(value)


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
