"""Calling one hook of one plugin, so that every failure has a name."""

import logging
from functools import cache, lru_cache
from types import CodeType, NoneType
from typing import Any, get_type_hints

import pluggy

from virtlet import hookspecs
from virtlet.core.hooks.blame import BREAKS, is_foreign, raised, returned
from virtlet.core.hooks.registry import Registry
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition
from virtlet.model.typed import Shape, shape

log = logging.getLogger(__name__)

INVERSES = tuple(hook for hook, mode in hookspecs.HOOKS.items() if mode == "inverse")
"""Hooks that undo an effect."""


class Caller:
    """Calls hooks plugin by plugin, by pluggy's public means alone.

    Wrappers of the active plugins are part of every call.

    Args:
        registry: the plugins.
        watch: looks after the calls.
    """

    def __init__(self, registry: Registry, watch: HookWatch) -> None:
        self._registry = registry
        self._watch = watch
        self._manager = registry.manager
        self._subset = lru_cache(maxsize=1024)(self._make_subset)

    def providers(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the active plugins that implement a hook, in the order of registration."""
        return tuple(
            impl.plugin_name
            for impl in self._hook(hook).get_hookimpls()
            if impl.plugin_name in active and not _wraps(impl)
        )

    def asked(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        """As `providers`, in the order a first-result hook asks them."""
        return tuple(reversed(self.providers(hook, active)))

    def call(self, hook: str, plugin: str, active: tuple[str, ...], **arguments: Any) -> Any:
        """Call one plugin's implementation; see `check` for what it returned.

        Returns:
            What it returned; None also when it does not implement the hook, as a plugin may leave
            out an inverse that has nothing to undo.

        Raises:
            FailedPrecondition: the plugin is not installed, and is needed.
            PluginError: it raised something that is not ours.
        """
        if not self._manager.has_plugin(plugin):
            self._do_without(hook, plugin)
            return None
        try:
            with self._watch.calling(plugin, hook, *arguments.values()):
                result = self._subset(hook, plugin, active)(**arguments)
        except BREAKS as error:
            if not is_foreign(error):
                raise
            culprit = self._culprit(hook, plugin, active, error)
            what = f"wrapping {plugin!r}, " if culprit in self._wrappers(hook, active) else ""
            raise raised(culprit, hook, what, error) from error
        # Hooks that are not first-result hooks answer with a list of one.
        if isinstance(result, list) and not self._is_first(hook):
            return result[0] if result else None
        return result

    def _do_without(self, hook: str, plugin: str) -> None:
        """Pass over a plugin that is not there, if there is nothing it would undo.

        Raises:
            FailedPrecondition: there is.
        """
        seen = self._registry.departed.get(plugin)
        if hook in INVERSES and seen is not None and hook not in seen.inverses:
            return
        if hook in INVERSES and self._registry.forgets(plugin):
            extra = {"plugin": plugin, "hook": hook}
            log.warning("what a plugin made is forgotten and not undone", extra=extra)
            return
        raise FailedPrecondition(f"{hook} is needed: {self._registry.why_missing(plugin)}")

    def check(self, hook: str, plugin: str, active: tuple[str, ...], answer: Any) -> None:
        """Refuse an answer that is not of the hook's type, or holds something that is not.

        Raises:
            PluginError: the same; it names the wrappers too, who may have spoiled the answer.
        """
        wanted = _result(hook)
        if answer is None or wanted is None:
            return
        blamed = self.involved(hook, plugin, active)
        try:
            flaw = wanted.inspect(answer)
        except BREAKS as error:
            if not is_foreign(error):
                raise
            raise raised(blamed, hook, "returned something that ", error) from error
        if flaw is not None:
            raise returned(blamed, hook, f"returned {flaw.of(answer)}")

    def involved(self, hook: str, plugin: str, active: tuple[str, ...]) -> str:
        """Everybody who can have had a hand in a plugin's answer, for messages."""
        wrappers = (w for w in self._wrappers(hook, active) if w != plugin)
        return " or ".join((plugin, *wrappers))

    def _hook(self, hook: str) -> pluggy.HookCaller:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller

    def _is_first(self, hook: str) -> bool:
        spec = self._hook(hook).spec
        return spec is not None and bool(spec.opts.get("firstresult"))

    def _wrappers(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            impl.plugin_name
            for impl in self._hook(hook).get_hookimpls()
            if impl.plugin_name in active and _wraps(impl)
        )

    def _make_subset(self, hook: str, plugin: str, active: tuple[str, ...]) -> pluggy.HookCaller:
        others = [
            self._manager.get_plugin(impl.plugin_name)
            for impl in self._hook(hook).get_hookimpls()
            if impl.plugin_name != plugin and not (_wraps(impl) and impl.plugin_name in active)
        ]
        return self._manager.subset_hook_caller(hook, others)

    def _culprit(
        self, hook: str, plugin: str, active: tuple[str, ...], error: BaseException
    ) -> str:
        """Of those who took part, whose function the traceback ran through last."""
        took_part = (plugin, *self._wrappers(hook, active))
        owners: dict[CodeType, str] = {}
        for impl in self._hook(hook).get_hookimpls():
            code = getattr(impl.function, "__code__", None)
            # One class may be installed twice: then it is the one that was asked.
            if code and impl.plugin_name in took_part and owners.get(code) != plugin:
                owners[code] = impl.plugin_name
        name, trace = None, error.__traceback__
        while trace is not None:
            name = owners.get(trace.tb_frame.f_code, name)
            trace = trace.tb_next
        return name or self.involved(hook, plugin, active)


@cache
def _result(hook: str) -> Shape | None:
    """What a hook has to return; None when nobody looks at it."""
    kind = get_type_hints(getattr(hookspecs, hook))["return"]
    return None if kind is NoneType else shape(kind)


def _wraps(impl: pluggy.HookImpl) -> bool:
    return bool(impl.wrapper or impl.hookwrapper)
