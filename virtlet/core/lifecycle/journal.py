"""The journal: no effect without an intent before it and a record after it.

An effect is an object that can be applied and reverted. `perform` writes down who is about to do
what, applies it, and writes down what came of it. `undo` reverts what is written down, the last
effect first, with the record or, when a crash or an error came in between, with None; it carries
on past errors, and what could not be reverted stays written down for the next try.

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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from virtlet.core.store.records import EffectRow, decode
from virtlet.core.store.store import Store
from virtlet.errors import UndoIncomplete, VirtletError

log = logging.getLogger(__name__)

T = TypeVar("T")
Points = Callable[[str], None]
"""Called with the name of every place where a crash may fall."""


def _nothing() -> None:
    """What is done when nothing is asked for."""


class Effect(Protocol):
    """A change of the node and its inverse."""

    kind: ClassVar[str]
    """What the journal calls it."""
    record_type: ClassVar[Any]
    """Type of what `apply` returns."""

    @property
    def owner(self) -> str:
        """Id of the pod or VM it belongs to."""

    @property
    def plugin(self) -> str:
        """Who does and undoes it."""

    @property
    def role(self) -> str:
        """Tells effects of one kind and owner apart; "" where there is one."""

    def apply(self) -> Any:
        """Do it; None means that the plugin declined and nothing was done."""

    def revert(self, record: Any) -> None:
        """Undo it, whether `record` (what apply returned) is known or None; idempotent."""


class Journal:
    """Performs and undoes effects.

    Args:
        store: where intents and records are written.
        restore: makes the effect that a stored row stands for.
        points: what is done at every place where a crash may fall.
        make_room: called before something is undone, which writes: on a full disk, too.
    """

    def __init__(
        self,
        store: Store,
        restore: Callable[[EffectRow], Effect],
        points: Points,
        make_room: Callable[[], None] = _nothing,
    ) -> None:
        self._make_room = make_room
        self._store = store
        self._restore = restore
        self._points = points

    def perform(self, effect: Effect) -> Any:
        """Apply an effect between its intent and its record.

        Returns:
            What `apply` returned; None when the plugin declined.
        """
        name = f"{effect.kind}[{effect.role}]" if effect.role else effect.kind
        self._points(f"{name}:before-intent")
        seq = self._store.intend(effect.owner, effect.kind, effect.plugin, effect.role)
        self._points(f"{name}:intended")
        result = effect.apply()
        if result is None:
            self._store.forget(seq)
            return None
        self._points(f"{name}:applied")
        self._store.record(seq, result, effect.record_type)
        self._points(f"{name}:recorded")
        return result

    def undo(self, owner: str, kinds: Collection[str] | None = None) -> None:
        """Revert the effects of a pod or VM, the last first.

        Args:
            owner: id of the pod or VM.
            kinds: only effects of these kinds; None means all.

        Raises:
            UndoIncomplete: some could not be reverted; they stay written down.
        """
        self._make_room()
        problems = []
        for row in reversed(self._store.effects(owner)):
            if kinds is not None and row.kind not in kinds:
                continue
            name = f"{row.kind}[{row.role}]" if row.role else row.kind
            try:
                effect = self._restore(row)
                record = decode(row.record, effect.record_type) if row.record else None
                self._points(f"{name}:before-revert")
                effect.revert(record)
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
        kinds: Collection[str] | None = None,
    ) -> Iterator[None]:
        """Undo what `owner` has when the block raises.

        The block's own error is raised in the end, with what could not be undone appended to it.

        Args:
            owner: id of the pod or VM.
            then: called once nothing is left.
            otherwise: called instead when something is left.
            kinds: only effects of these kinds; None means all.
        """
        try:
            yield
        except Exception as error:
            try:
                self._undo_or(otherwise, owner, kinds)
                then()
            except VirtletError as left:
                error.add_note(str(left))
            raise

    def _undo_or(
        self, otherwise: Callable[[], None], owner: str, kinds: Collection[str] | None
    ) -> None:
        try:
            self.undo(owner, kinds)
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
