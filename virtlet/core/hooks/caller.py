"""Calling one hook of one plugin, so that every failure has a name."""

import logging
from functools import cache
from types import NoneType
from typing import Any, get_type_hints

from virtlet import hookspecs
from virtlet.core.hooks.blame import BREAKS, is_foreign, raised, returned
from virtlet.core.hooks.registry import Registry
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition
from virtlet.model.typed import Shape, shape

log = logging.getLogger(__name__)


class Caller:
    """Calls hooks plugin by plugin.

    Args:
        registry: the plugins.
        watch: looks after the calls.
    """

    def __init__(self, registry: Registry, watch: HookWatch) -> None:
        self._registry = registry
        self._watch = watch

    def providers(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the active plugins that implement a hook, in their order."""
        having = self._registry.implementing(hook)
        return tuple(name for name in active if name in having)

    def asked(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        """As `providers`, in the order a first-result hook asks them."""
        return tuple(reversed(self.providers(hook, active)))

    def limit(self, plugin: str, hook: str) -> float:
        """Seconds after which a plugin's hook is said to hang."""
        return self._watch.limit(plugin, hook)

    def call(self, hook: str, plugin: str, **arguments: Any) -> Any:
        """Call one plugin's implementation.

        Returns:
            What it returned, of the hook's type all the way down; None also when it does not
            implement the hook, as a plugin may leave out an inverse that has nothing to undo.

        Raises:
            FailedPrecondition: the plugin is not installed, and is needed.
            PluginError: it raised something that is not ours, or returned a wrong type.
        """
        if not self._registry.manager.has_plugin(plugin):
            self._do_without(hook, plugin)
            return None
        implementation = self._registry.implementing(hook).get(plugin)
        if implementation is None:
            return None
        what = ""
        try:
            given = [arguments[name] for name in implementation.argnames]
            with self._watch.calling(plugin, hook, *arguments.values()):
                answer: Any = implementation.function(*given)
            what, wanted = "returned something that ", _result(hook)
            flaw = None if answer is None or wanted is None else wanted.inspect(answer)
        except BREAKS as error:
            if not is_foreign(error):
                raise
            raise raised(plugin, hook, what, error) from error
        if flaw is not None:
            raise returned(plugin, hook, f"returned {flaw.of(answer)}")
        return answer

    def _do_without(self, hook: str, plugin: str) -> None:
        """Pass over a plugin that is not there, if there is nothing it would undo.

        Raises:
            FailedPrecondition: there is.
        """
        inverse = hook in hookspecs.INVERSES.values()
        seen = self._registry.departed.get(plugin)
        if inverse and seen is not None and hook not in seen.inverses:
            return
        if inverse and self._registry.forgets(plugin):
            extra = {"plugin": plugin, "hook": hook}
            log.warning("what a plugin made is forgotten and not undone", extra=extra)
            return
        raise FailedPrecondition(f"{hook} is needed: {self._registry.why_missing(plugin)}")


@cache
def _result(hook: str) -> Shape | None:
    """What a hook has to return; None when nobody looks at it."""
    kind = get_type_hints(getattr(hookspecs, hook))["return"]
    return None if kind is NoneType else shape(kind)
