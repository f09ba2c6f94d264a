"""The steps of a resize, between its intent and its commit, and their undo."""

import logging
from collections.abc import Callable, Mapping

from attrs import evolve, fields

from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import Resizing, VmPhase, VmRecord
from virtlet.errors import VirtletError
from virtlet.model.resources import Resources

log = logging.getLogger(__name__)


class Steps:
    """The steps of one resize: intended, done, and undone when one fails.

    Args:
        context: the manager.
        record: the VM's, of before.
        change: what is to be.
        limits: files of control groups that change, to what they hold.
    """

    def __init__(
        self, context: Context, record: VmRecord, change: Resources, limits: Mapping[str, str]
    ) -> None:
        self._context = context
        self._record = record
        self._done: list[tuple[str, Callable[[], object]]] = []
        self._in_doubt = record.resizing is not None and record.phase is VmPhase.RUNNING
        left = record.resizing or Resizing(Resources(), {})
        self.resizing = Resizing(merged(left.change, change), {**limits, **left.limits})
        """What may not be as on record from now on, because of an earlier resize too."""

    def intend(self) -> None:
        """Write down what is to be changed."""
        self._write("vm-resizing", self.resizing)

    def done(self, name: str, undo: Callable[[], object]) -> None:
        """Keep what undoes a step that was done."""
        self._done.append((name, undo))
        self._context.journal.reached(f"{name}:applied")

    def doubt(self) -> None:
        """A step failed, and may have been done all the same."""
        self._in_doubt = True

    def undo(self, error: Exception) -> None:
        """Put back what was changed, the last first; what cannot be is noted on the error.

        The intent is struck out if all is as on record then, and stays otherwise.
        """
        whole = not self._in_doubt
        for name, step in reversed(self._done):
            whole = self._try(error, name, step) and whole
        if whole:
            self._try(error, "vm-resizing", lambda: self._write("vm-resize-undone", None))

    def _try(self, error: Exception, name: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except VirtletError as left:
            error.add_note(f"and not all is as it was: {left}")
            extra = {"vm": self._record.vm.id, "step": name, "problem": str(left)}
            log.warning("resize not undone", extra=extra)
            return False
        self._context.journal.reached(f"{name}:reverted")
        return True

    def _write(self, what: str, resizing: Resizing | None) -> None:
        def change(known: VmRecord) -> VmRecord | None:
            # A VM that ended meanwhile has nothing to put back.
            pointless = known.phase is not self._record.phase or known.resizing == resizing
            return None if pointless else evolve(known, resizing=resizing)

        vm_id = self._record.vm.id
        self._context.journal.commit(what, lambda: self._context.store.change_vm(vm_id, change))


def merged(now: Resources, change: Resources) -> Resources:
    """The resources after a change: what it leaves unset stays."""
    values = {field.name: getattr(change, field.name) for field in fields(Resources)}
    return evolve(now, **{name: value for name, value in values.items() if value})
