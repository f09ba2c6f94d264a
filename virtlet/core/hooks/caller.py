"""Asking plugins in turn: the order, what a failure means, blame, patience, and the thread."""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache, partial
from types import NoneType
from typing import Any, TypeVar, get_type_hints

from virtlet import hookspecs
from virtlet.core.hooks.blame import call_blamed, logged, returned
from virtlet.core.hooks.profiles import Policy
from virtlet.core.hooks.registry import Registry
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.hookspecs import HOOKS
from virtlet.model.typed import Shape, shape

log = logging.getLogger(__name__)

T = TypeVar("T")

OPTIONS, ANNOTATIONS = "virtlet_options", "virtlet_annotations"
CONFIGURE, RECONCILE = "virtlet_configure", "virtlet_reconcile"

_BEFORE_LOGS = frozenset({OPTIONS, ANNOTATIONS})
"""Hooks that are called before the logs are set up: the refusal is all that is said."""
_LEFT_BEHIND = frozenset({CONFIGURE, RECONCILE})
"""Hooks of the start, which a third-party plugin that hangs must not hold up."""

Failed = Callable[[str, VirtletError], None]
"""Takes a plugin and its error; raises to ask nobody else."""


def optional(hook: str) -> bool:
    """Whether an operator may have a hook's failures logged instead of raised."""
    return hook == "virtlet_cloud_init" or HOOKS[hook] == "adjust"


def _fine(plugin: str, answer: object) -> str:
    return ""


class Caller:
    """Calls hooks plugin by plugin.

    Args:
        registry: the plugins.
        watch: looks after the calls.

    Attributes:
        policy: what the operator says about single plugins.
    """

    def __init__(self, registry: Registry, watch: HookWatch) -> None:
        self.policy = Policy()
        self._registry = registry
        self._watch = watch

    def order(self, hook: str, active: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the active plugins that have a hook, in the order in which it calls them."""
        having = self._registry.implementing(hook)
        found = tuple(name for name in active if name in having)
        return found[::-1] if HOOKS[hook] == "first" else found

    def in_turn(
        self,
        hook: str,
        plugins: tuple[str, ...],
        perform: Callable[[str], T | None],
        check: Callable[[str, T | None], str] = _fine,
        failed: Failed | None = None,
    ) -> Iterator[tuple[str, T]]:
        """Ask plugins one after the other; the next one only when it is wanted.

        Args:
            hook: what they are asked.
            plugins: the plugins to ask, in this order.
            perform: asks the plugin that it is given; None means that it has no answer.
            check: what is wrong with a plugin's answer, as a clause for a message; "" for nothing.
            failed: what to do about an error, also one that `check` found. Without it the error is
                raised, unless the hook is optional and the operator wants to do without the plugin.

        Returns:
            (plugin, answer) of each that has one.
        """
        failed = failed or partial(self._failed, hook)
        for plugin in plugins:
            try:
                answer = perform(plugin)
                problem = check(plugin, answer)
                if problem:
                    raise returned(plugin, hook, problem)
            except VirtletError as error:
                failed(plugin, error)
                continue
            if answer is not None:
                yield plugin, answer

    def call(self, hook: str, plugin: str, **arguments: Any) -> Any:
        """Call one plugin's implementation.

        Returns:
            What it returned, of the hook's type all the way down; None also when it does not
            implement the hook, as a plugin may leave out an inverse that has nothing to undo.

        Raises:
            FailedPrecondition: the plugin is not installed, and is needed.
            PluginError: it raised something that is not ours, or returned a wrong type; or it
                hangs at the start.
        """
        if not self._registry.manager.has_plugin(plugin):
            self._do_without(hook, plugin)
            return None
        implementation = self._registry.implementing(hook).get(plugin)
        if implementation is None:
            return None

        def call() -> Any:
            return implementation.function(*[arguments[name] for name in implementation.argnames])

        watched = self._watch.calling(plugin, hook, *arguments.values())
        blamed = partial(call_blamed, plugin, hook, "", call, _result(hook), watched)
        if hook in _BEFORE_LOGS:
            return blamed()
        with logged():
            if hook in _LEFT_BEHIND and plugin not in self._registry.builtin:
                return self._in_time(hook, plugin, blamed)
            return blamed()

    def _in_time(self, hook: str, plugin: str, call: Callable[[], Any]) -> Any:
        """Call a plugin on a thread of its own, which is left behind if it hangs.

        Raises:
            VirtletError: what the call raised, or that it has not come back within its time limit.
        """
        ended: Future[Any] = Future()

        def run() -> None:
            try:
                ended.set_result(call())
            except BaseException as error:
                ended.set_exception(error)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(run,), name="start-up", daemon=True).start()
        limit = self._watch.limit(plugin, hook)
        try:
            return ended.result(limit)
        except TimeoutError:
            problem = f"has not returned for {limit:g} s (hookPatience)"
            raise returned(plugin, hook, problem) from None

    def _failed(self, hook: str, plugin: str, error: VirtletError) -> None:
        if not (optional(hook) and plugin in self.policy.lenient):
            raise error
        extra = {"plugin": plugin, "hook": hook, "problem": str(error)}
        log.error("optional hook failed and is passed over", extra=extra)

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
