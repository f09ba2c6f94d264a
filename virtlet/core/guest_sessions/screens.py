"""Screens of VMs, which port-forward leads to.

Why so: docs/decisions/0100-screens-by-port-forward.md.
"""

import asyncio
import socket
import threading
from collections import Counter
from concurrent.futures import Future

from virtlet.core.lifecycle.context import Context
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import FailedPrecondition, ResourceExhausted

SCREEN_PORT = 5900
"""The port of VNC's first display; source: RFC 6143, section 9."""
OPENING, OPENING_OF_VM = 8, 2
"""Viewers that wait for emulators at one time, of the node and of one VM; it takes milliseconds."""


class Screens:
    """Lets viewers at screens. Used on one event loop.

    Each is let in on a thread of its own: an emulator that does not answer holds up nothing else,
    and is left behind when the manager ends.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._opening: Counter[str] = Counter()

    def of(self, pod_id: str) -> VmRecord | None:
        """The VM of a pod that has a screen, one that runs before others; None if none has."""
        records = [
            record
            for record in self._context.store.vms_of(pod_id)
            if record.machine is not None and record.machine.flavor.video
        ]
        records.sort(key=lambda record: (record.phase is VmPhase.RUNNING, record.vm.created_at))
        return records[-1] if records else None

    async def open(self, record: VmRecord) -> socket.socket:
        """A connection of one more viewer, which speaks RFB.

        Raises:
            FailedPrecondition: the VM does not run.
            ResourceExhausted: others wait for emulators that do not answer.
            VirtletError: whatever the hypervisor says.
        """
        if record.phase is not VmPhase.RUNNING:
            raise FailedPrecondition(
                f"VM {record.vm.name} does not run, but is {record.state}: it shows no screen"
            )
        self._take(record)
        opening: Future[socket.socket] = Future()
        threading.Thread(
            target=self._open, args=(record, opening), name="screen", daemon=True
        ).start()
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def _take(self, record: VmRecord) -> None:
        with self._lock:
            if self._opening[record.vm.id] >= OPENING_OF_VM:
                raise ResourceExhausted(
                    f"the emulator of VM {record.vm.name} has not let the last viewers at the "
                    "screen yet: try again, and run the pod again if it stays so"
                )
            if self._opening.total() >= OPENING:
                raise ResourceExhausted(
                    f"{OPENING} viewers of this node's screens wait for emulators: try again"
                )
            self._opening[record.vm.id] += 1

    def _open(self, record: VmRecord, opening: "Future[socket.socket]") -> None:
        opening.set_running_or_notify_cancel()
        try:
            hypervisor = self._context.hypervisors.named(record.hypervisor)
            connection = hypervisor.open_screen(record.vm.id)
        except BaseException as error:
            self._give_back(record.vm.id)
            opening.set_exception(error)
        else:
            self._give_back(record.vm.id)
            opening.set_result(connection)

    def _give_back(self, vm_id: str) -> None:
        with self._lock:
            self._opening[vm_id] -= 1
            if not self._opening[vm_id]:
                del self._opening[vm_id]


def _close(opening: "Future[socket.socket]") -> None:
    """Close what came for a viewer that has left."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
