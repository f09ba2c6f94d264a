"""Calls into plugins that do not come back: named in the log, and to who would wait for them."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define

from virtlet.model.pod import Pod
from virtlet.model.vm import Machine, Vm
from virtlet.threads import Worker
from virtlet.traces import OFF, Traces

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds, where nobody sets them."""
AGAIN = 60.0
"""Seconds until a call that still has not come back is named again."""
_LONG = frozenset({"virtlet_fetch_image"})
"""Hooks that take as long as they take, and have limits of their own."""
_REMEDY = (
    "see what the plugin waits for; a restart of the manager ends the hook and undoes what it "
    "began, and VMs go on running"
)


@define(eq=False)
class _Call:
    """One call under way."""

    plugin: str
    what: str
    subject: dict[str, str]
    thread: int
    since: float
    named: float


class HookWatch:
    """Knows which calls into plugins are under way, and since when.

    Attributes:
        patience: seconds after which a call is said to hang.
        limits: the same for single plugins and hooks; see `Policy.patience`.
        traces: where calls are seen, too.
    """

    def __init__(self) -> None:
        self.patience = PATIENCE
        self.limits: Mapping[tuple[str, str], float] = {}
        self.traces: Traces = OFF
        self._calls: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._worker = Worker("hook-watch", self._look)

    @contextmanager
    def calling(self, plugin: str, what: str, *about: object, vm: str = "") -> Iterator[None]:
        """Have a call looked after.

        Args:
            plugin: who is called.
            what: the hook, or the method of an object that a hook returned.
            about: the call's arguments; pods and VMs among them are named.
            vm: id of the VM that it is about, where no argument is one.
        """
        with self.traces.step(what, {"plugin": plugin}):
            if what in _LONG and (plugin, what) not in self.limits:
                yield
            else:
                with self._known(plugin, what, about, vm):
                    yield

    @contextmanager
    def _known(self, plugin: str, what: str, about: tuple[object, ...], vm: str) -> Iterator[None]:
        now = time.monotonic()
        subject = {"vm": vm} if vm else _subject(about)
        call = _Call(plugin, what, subject, threading.get_ident(), now, 0.0)
        with self._lock:
            self._calls[id(call)] = call
        try:
            yield
        finally:
            with self._lock:
                del self._calls[id(call)]

    def limit(self, plugin: str, hook: str) -> float:
        """Seconds after which a plugin's hook is said to hang."""
        of_plugin = self.limits.get((plugin, ""), self.patience)
        return self.limits.get((plugin, hook), of_plugin)

    def hanging(self, thread: int) -> str:
        """What a thread has waited for longer than the patience, for messages; or ""."""
        now = time.monotonic()
        for call in reversed(self._under_way()):
            if call.thread == thread and now - call.since >= self._patience(call):
                return (
                    f"plugin {call.plugin!r} has not returned from {call.what} for "
                    f"{now - call.since:.0f} s: {_REMEDY}"
                )
        return ""

    def start(self) -> None:
        """Name what hangs in the log from now on."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread."""
        self._worker.stop()

    def _look(self) -> float:
        now = time.monotonic()
        for call in self._under_way():
            patience = self._patience(call)
            if now - max(call.since, call.named + AGAIN - patience) < patience:
                continue
            call.named = now
            log.warning(
                "a plugin has not returned",
                extra={
                    "plugin": call.plugin,
                    "hook": call.what,
                    "seconds": round(now - call.since),
                    **call.subject,
                    "remedy": _REMEDY,
                },
            )
        return min(self.patience, *self.limits.values(), AGAIN) / 4

    def _patience(self, call: _Call) -> float:
        return self.limit(call.plugin, call.what)

    def _under_way(self) -> list[_Call]:
        with self._lock:
            return list(self._calls.values())


def _subject(about: tuple[object, ...]) -> dict[str, str]:
    """The pod and VM that a call is about."""
    found: dict[str, str] = {}
    for value in about:
        vm: Any = value.vm if isinstance(value, Machine) else value
        if isinstance(vm, Vm):
            found |= {"pod_name": vm.pod.name, "pod": vm.pod.id, "vm": vm.id}
        elif isinstance(value, Pod):
            found |= {"pod_name": value.name, "pod": value.id}
    return found
