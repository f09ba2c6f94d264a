"""Saying whose fault it is, for hooks and for the objects that plugins hand over."""

import functools
import inspect
import logging
import re
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_type_hints

from virtlet import api
from virtlet.core.hooks.watch import HookWatch
from virtlet.core.log_setup import text_of
from virtlet.errors import PluginError, VirtletError
from virtlet.hookspecs import INVERSES
from virtlet.model.plain import with_article
from virtlet.model.typed import Shape, WrongType, shape

log = logging.getLogger(__name__)

BREAKS = (Exception, SystemExit, KeyboardInterrupt, CancelledError)
"""What a plugin may raise without ending the manager; see `is_foreign`."""

OPEN = frozenset(
    {"virtlet_options", "virtlet_annotations", "virtlet_configure", "virtlet_shutdown"}
)
"""Hooks that hear nothing of a pod, so that the text of what they raise can be shown."""

_LIBRARY = Path(inspect.__file__).parent
_OUT = "take it out of the handler's `plugins`"
_OUT_OF_UNDOING = (
    "uninstall it, name it in the setting forgottenPlugins and restart the manager, which leaves "
    "on the node what it made"
)


def is_foreign(error: BaseException) -> bool:
    """Whether one of BREAKS is the plugin's own doing: not one of our errors, which say all that
    is to be said, and not the operator's Ctrl-C, which reaches the main thread alone."""
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is not threading.main_thread()
    return not isinstance(error, VirtletError)


def raised(plugin: str, hook: str, what: str, error: BaseException) -> PluginError:
    """The error to raise, from `error`, when a plugin raised something that is not ours.

    Its text is left out, as it may quote a pod; that of WrongType holds no value.
    """
    if isinstance(error, WrongType):
        return returned(plugin, hook, f"{what}made {error}{_place(error)}")
    misused = _misused(error)
    if misused:
        return returned(plugin, hook, f"{what}made {misused}{_place(error)}")
    text = text_of(error) if hook in OPEN else ""
    return PluginError(
        plugin,
        hook,
        f"{what}raised {type(error).__name__}{text and f': {text}'}{_place(error)}",
        f"the manager's log has the traceback; mend the plugin or {_way_out(hook)}",
    )


def returned(plugin: str, hook: str, problem: str) -> PluginError:
    """The error to raise when a plugin broke its contract without raising anything."""
    remedy = f"mend the plugin (docs/hooks.md has the types) or {_way_out(hook)}"
    return PluginError(plugin, hook, problem, remedy)


def _way_out(hook: str) -> str:
    # Whom a pod is served by is stored with it: a handler's plugins are for new pods.
    return _OUT_OF_UNDOING if hook in INVERSES.values() else _OUT


@contextmanager
def logged() -> Iterator[None]:
    """Log where a plugin raised what it is blamed for; the error's message tells the rest."""
    try:
        yield
    except PluginError as error:
        if error.__cause__ is not None:
            extra = {"plugin": error.plugin, "hook": error.hook}
            log.error("plugin raised", extra=extra, exc_info=error.__cause__)
        raise


def call_blamed(
    plugin: str,
    hook: str,
    what: str,
    call: Callable[[], Any],
    wanted: Shape | None,
    watched: AbstractContextManager[None],
) -> Any:
    """Call a plugin's code, so that every failure has the plugin's name.

    Args:
        plugin: whose code it is.
        hook: that it implements, or that returned the object it is a method of.
        what: names the method, with a space at its end; "" for the hook itself.
        call: calls it.
        wanted: what it has to return; None when nobody looks at it.
        watched: surrounds the call.

    Raises:
        PluginError: it raised something that is not ours, or returned a wrong type.
    """
    doing = what
    try:
        with watched:
            answer = call()
        doing = what or "returned something that "
        # A hook may have no answer; a method has what its protocol says.
        nothing = answer is None and not what
        flaw = None if wanted is None or nothing else wanted.inspect(answer)
    except BREAKS as error:
        if not is_foreign(error):
            raise
        raise raised(plugin, hook, doing, error) from error
    if flaw is not None:
        raise returned(plugin, hook, f"{what}returned {flaw.of(answer)}")
    return answer


_MISUSES = {
    r"takes 1 positional argument but": "by position instead of by its fields' names",
    r"got an unexpected keyword argument": "with a field that it does not have",
    r"missing \d+ required keyword-only": "without a field that it has to have",
}


def _misused(error: BaseException) -> str:
    """What of the API was made in a way that nothing is made, and how; or ""."""
    if not isinstance(error, TypeError):
        return ""
    text = text_of(error)
    for start, how in _MISUSES.items():
        found = re.match(rf"(\w+)\.__init__\(\) {start}", text)
        if found and found[1] in api.__all__:
            return f"{with_article(found[1])} {how}"
    found = re.match(r"Can't instantiate abstract class (\w+) (.*)", text)
    return f"{with_article(found[1])} {found[2]}" if found else ""


def _place(error: BaseException) -> str:
    """The last line of code that is not Python's own, where the plugin's author can mend it."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if not (_is_python(path) or (isinstance(error, WrongType) and _makes_models(path))):
            place = f" ({path.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _is_python(path: Path) -> bool:
    """Whether code is of the standard library, which a plugin's package may be installed below."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_relative_to(_LIBRARY) and not installed


def _makes_models(path: Path) -> bool:
    """Whether code is that of a constructor, which a wrong type goes through."""
    return path.name.startswith("<attrs generated") or path.parent.name in ("attr", "model")


class Blamed:
    """Stands for a plugin's object; every method of it raises VirtletError or nothing, and
    returns what the protocol says.

    Args:
        plugin: whose it is.
        hook: that returned it.
        protocol: what it has to be.
        target: the object.
        watch: looks after calls of it, where they are to be short.
    """

    def __init__(
        self,
        plugin: str,
        hook: str,
        protocol: type,
        target: object,
        watch: HookWatch | None = None,
    ) -> None:
        self._plugin = plugin
        self._hook = hook
        self._protocol = protocol
        self._target = target
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            work = functools.partial(method, *args, **kwargs)
            wanted = _result(self._protocol, name)
            with logged():
                watched = self._calling(name, args)
                return call_blamed(self._plugin, self._hook, f"{name} ", work, wanted, watched)

        return call

    def _calling(self, name: str, args: tuple[Any, ...]) -> AbstractContextManager[None]:
        if self._watch is None:
            return nullcontext()
        vm = args[0] if args and _first_argument(self._protocol, name) == "vm_id" else ""
        return self._watch.calling(self._plugin, name, *args, vm=vm)


@functools.cache
def _first_argument(protocol: type, method: str) -> str:
    """What a method takes first, or ""."""
    function = getattr(protocol, method, None)
    names = list(inspect.signature(function).parameters) if function else []
    return names[1] if len(names) > 1 else ""


@functools.cache
def _result(protocol: type, method: str) -> Shape | None:
    """What a method has to return; None when nobody looks at it."""
    function = getattr(protocol, method, None)
    kind = get_type_hints(function).get("return") if function else None
    return None if kind is None or kind is type(None) else shape(kind)
