"""How many commands run at one time."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from virtlet.errors import ResourceExhausted


class Slots:
    """Counts the commands under way; safe to use from any thread.

    Args:
        total: of all VMs.
        each: of one VM, so that a wedged guest cannot use up the total.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[str] = Counter()
        self._changed = threading.Condition()

    def take(self, vm_id: str) -> None:
        """Take a slot for a command in a VM; `give_back` it.

        Raises:
            ResourceExhausted: there is none.
        """
        with self._changed:
            if self._taken[vm_id] >= self._each:
                raise ResourceExhausted(
                    f"{self._each} commands run in this VM through its guest agent, more at one "
                    "time do not: try again when one has ended"
                )
            if self._taken.total() >= self._total:
                raise ResourceExhausted(
                    f"{self._total} commands run in the VMs of this node, more at one time do not: "
                    "try again when one has ended"
                )
            self._taken[vm_id] += 1

    def give_back(self, vm_id: str) -> None:
        """Return a slot."""
        with self._changed:
            self._taken[vm_id] -= 1
            if not self._taken[vm_id]:
                del self._taken[vm_id]
            self._changed.notify_all()

    @contextmanager
    def taken(self, vm_id: str) -> Iterator[None]:
        """A slot for a while; errors as for `take`."""
        self.take(vm_id)
        try:
            yield
        finally:
            self.give_back(vm_id)

    def wait_until_free(self, timeout: float) -> bool:
        """Wait, up to `timeout` seconds, until no slot is taken; returns whether that came."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._taken.total(), timeout)
