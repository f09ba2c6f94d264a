"""The journal: no effect without an intent before it and a record after it.

An effect is a row: whose it is, its kind, who does it, and its record once it is done. `perform`
writes the row, does it, and writes down what came of it. `undo` undoes what is written down, the
last effect first, by the function that the table `effects.UNDO` has for its kind: with the record
or, when a crash or an error came in between, without one. It carries on past errors, and what could
not be undone stays written down for the next try. A failed step, a stop, a removal and recovery all
undo in this way.

The journal passes a named point before and after everything it does, where a crash may fall. In
service nothing happens there. Two environment variables are for the crash tests alone:
VIRTLET_TRACE_POINTS names a file that every passed point is appended to, VIRTLET_CRASH_POINT_FILE
one that may hold the name of the point where the manager is to kill itself, once: it takes the file
away with it.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from virtlet.core.store.records import EffectRow, encode
from virtlet.core.store.store import Store
from virtlet.errors import UndoIncomplete, VirtletError
from virtlet.traces import OFF, Traces

log = logging.getLogger(__name__)

T = TypeVar("T")
Points = Callable[[str], None]
"""Called with the name of every place where a crash may fall."""

CORE = "core"
"""What the journal names as the plugin of effects that are our own."""


def _nothing() -> None:
    """What is done when nothing is asked for."""


def _untimed(kind: str, outcome: str, seconds: float) -> None:
    """Nobody wants to know how long effects take."""


class Journal:
    """Performs and undoes effects.

    Args:
        store: where intents and records are written.
        revert: undoes the effect that a row stands for, whether its record is known or None;
            idempotent. See the table `effects.UNDO`.
        points: what is done at every place where a crash may fall.
        make_room: called before something is undone, which writes: on a full disk, too.
        timed: called with an effect's kind, "done" or "failed", and the seconds that it took.
        traces: where effects are seen, too.
    """

    def __init__(
        self,
        store: Store,
        revert: Callable[[EffectRow], None],
        points: Points,
        make_room: Callable[[], None] = _nothing,
        timed: Callable[[str, str, float], None] = _untimed,
        traces: Traces = OFF,
    ) -> None:
        self._make_room = make_room
        self._timed = timed
        self._traces = traces
        self._store = store
        self._revert = revert
        self._points = points

    def perform(
        self,
        owner: str,
        kind: str,
        apply: Callable[[], T],
        *,
        plugin: str = CORE,
        role: str = "",
        record: Any = None,
        before: Any = None,
        unchanged: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> T:
        """Do something between its intent and its record.

        Args:
            owner: id of the pod or VM it belongs to.
            kind: says what undoes it: a key of the table `effects.UNDO`.
            apply: does it.
            plugin: who does and undoes it.
            role: tells effects of one kind and owner apart; "" where there is one.
            record: type of what its undo needs, if it needs something: of what `apply` returns, or
                of `before`. None from `apply` means then that the plugin declined, and nothing was
                done.
            before: what undoes it, where that is known before it is done.
            unchanged: errors of `apply` that say that nothing was done.

        Returns:
            What `apply` returned.
        """
        name = f"{kind}[{role}]" if role else kind
        self._points(f"{name}:before-intent")
        known = None if before is None else encode(before, record)
        seq = self._store.intend(owner, kind, plugin, role, known)
        self._points(f"{name}:intended")
        began, outcome = time.perf_counter(), "failed"
        try:
            with self._traces.step(kind, {"plugin": plugin, "role": role}):
                result = apply()
            outcome = "done"
        except unchanged:
            self._store.forget(seq)
            raise
        finally:
            self._timed(kind, outcome, time.perf_counter() - began)
        if known is None and record is not None and result is None:
            self._store.forget(seq)
            return result
        self._points(f"{name}:applied")
        if known is None:
            self._store.record(seq, result if record else True, record or bool)
            self._points(f"{name}:recorded")
        return result

    def undo(self, owner: str, kinds: Collection[str] | None = None, after: int = 0) -> None:
        """Undo the effects of a pod or VM, the last first.

        Args:
            owner: id of the pod or VM.
            kinds: only effects of these kinds; None means all.
            after: only effects whose rows came after the one of this number.

        Raises:
            UndoIncomplete: some could not be undone; they stay written down.
        """
        self._make_room()
        problems = []
        for row in reversed(self._store.effects(owner)):
            if row.seq <= after or (kinds is not None and row.kind not in kinds):
                continue
            name = f"{row.kind}[{row.role}]" if row.role else row.kind
            try:
                self._points(f"{name}:before-revert")
                self._revert(row)
                self._points(f"{name}:reverted")
                self._store.forget(row.seq)
            except Exception as error:
                known = isinstance(error, VirtletError)
                what = str(error) if known else f"{type(error).__name__}: {error}"
                problems.append(f"{name} by plugin {row.plugin!r}: {what}")
                log.error(
                    "effect not undone",
                    extra={"owner": owner, "effect": name, "problem": what},
                    exc_info=not known,
                )
                continue
            self._points(f"{name}:forgotten")
        if problems:
            raise UndoIncomplete(
                f"not everything could be undone, it is kept and tried again: {'; '.join(problems)}"
            )

    def commit(self, what: str, write: Callable[[], T]) -> T:
        """Write a change of state, with a point before and after it."""
        self._points(f"{what}:before-commit")
        written = write()
        self._points(f"{what}:committed")
        return written

    def reached(self, point: str) -> None:
        """Pass a point between the parts of a change whose intent is committed."""
        self._points(point)

    @contextmanager
    def undone_on_error(
        self,
        owner: str,
        then: Callable[[], None] = _nothing,
        otherwise: Callable[[], None] = _nothing,
    ) -> Iterator[None]:
        """Undo what the block did to `owner` when it raises.

        The block's own error is raised in the end, with what could not be undone appended to it.

        Args:
            owner: id of the pod or VM.
            then: called once nothing of it is left.
            otherwise: called instead when something is left.
        """
        before = max((row.seq for row in self._store.effects(owner)), default=0)
        try:
            yield
        except Exception as error:
            try:
                self._undo_or(otherwise, owner, before)
                then()
            except VirtletError as left:
                error.add_note(str(left))
            raise

    def _undo_or(self, otherwise: Callable[[], None], owner: str, before: int) -> None:
        try:
            self.undo(owner, after=before)
        except UndoIncomplete:
            otherwise()
            raise


def points_from_environment(environment: Mapping[str, str]) -> Points:
    """The points' action that the environment asks for."""
    trace = environment.get("VIRTLET_TRACE_POINTS")
    crash = environment.get("VIRTLET_CRASH_POINT_FILE")
    if not trace and not crash:
        return lambda point: None

    def reach(point: str) -> None:
        if trace:
            with open(trace, "a") as file:
                file.write(f"{point}\n")
        if crash and _wanted(Path(crash)) == point:
            os.unlink(crash)
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def _wanted(crash: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return crash.read_text()
    return ""
