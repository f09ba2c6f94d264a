"""Refused resizes that are asked for again.

A kubelet repeats a resize that was refused every second, until the pod's owner asks for another.
What was refused a moment ago is refused again without looking at VM, guest and node, and one line
of the log is enough for all of it.
"""

import re
import threading
from collections.abc import Callable

from attrs import frozen

from virtlet.core.store.records import VmRecord
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError
from virtlet.model.resources import Resources

AGAIN = 10.0
"""Seconds until a refused resize is tried again: as often as a guest tells of its memory."""
_KEPT = 3600.0
"""Seconds that a reason which nobody asks for any more is known as logged."""
_NUMBER = re.compile(r"\d+")


@frozen
class _Refusal:
    change: Resources
    record: VmRecord | None
    """As it was afterwards: a changed one may be worth another try."""
    error: type[VirtletError] | None
    """None if the next try may end in another way."""
    text: str
    until: float


class Refusals:
    """The last refused resize of each VM.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, _Refusal] = {}

    def check(self, vm_id: str, record: VmRecord | None, change: Resources) -> None:
        """Refuse what was refused a moment ago.

        Raises:
            FailedPrecondition, InvalidArgument: as then.
        """
        with self._lock:
            last = self._last.get(vm_id)
        if last is None or last.error is None or last.record != record:
            return
        if last.change == change and self._clock() < last.until:
            error = last.error(last.text)
            error.repeated = True
            raise error

    def remember(
        self, vm_id: str, record: VmRecord | None, change: Resources, error: VirtletError
    ) -> None:
        """A resize was refused; marks the error as repeated if its reason is that of before."""
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
        kind = type(error) if type(error) in (FailedPrecondition, InvalidArgument) else None
        now = self._clock()
        refusal = _Refusal(change, record, kind, text, now + AGAIN)
        with self._lock:
            last = self._last.get(vm_id)
            # A figure in it may be another at every try.
            if last is not None and _NUMBER.sub("", last.text) == _NUMBER.sub("", text):
                error.repeated = True
            kept = {name: r for name, r in self._last.items() if now < r.until + _KEPT}
            kept[vm_id] = refusal
            self._last = kept

    def forget(self, vm_id: str) -> None:
        """A resize succeeded, or the VM is gone."""
        with self._lock:
            self._last.pop(vm_id, None)
