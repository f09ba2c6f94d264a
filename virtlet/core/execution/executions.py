"""Running commands in guests, for ExecSync and for streaming sessions."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from attrs import field, frozen
from attrs.validators import gt

from virtlet.core.execution.command import checked, running_machine
from virtlet.core.execution.slots import Slots
from virtlet.core.execution.streams import BridgedStreams, CollectedStreams
from virtlet.core.hooks.facade import Hooks
from virtlet.core.store.store import Store
from virtlet.errors import Unavailable
from virtlet.model.execution import GuestCommand
from virtlet.model.vm import Machine
from virtlet.streaming.sessions import ExecRequest, ExitStatus, SessionStreams

log = logging.getLogger(__name__)

OUTPUT_LIMIT = 16 << 20
"""Bytes kept of each output stream of ExecSync; source: the CRI definition."""


@frozen(kw_only=True)
class ExecLimits:
    """How many commands run at one time."""

    total: int = field(default=200, validator=gt(0))
    """Fewer than the calls the server works on at a time, so that stops always get through."""
    each: int = field(default=16, validator=gt(0))
    """In one VM: its agent serves one request after the other."""


@frozen
class ExecResult:
    """How a command ended, and the beginning of what it printed."""

    exit_code: int
    """0 to 255."""
    output: bytes = field(repr=False)
    errors: bytes = field(repr=False)


class Executions:
    """Runs commands; is the streaming server's `ExecRunner`.

    Args:
        store: where the VMs are.
        hooks: who runs commands in them.
        limits: how many at a time.
    """

    def __init__(self, store: Store, hooks: Hooks, limits: ExecLimits | None = None) -> None:
        self._store = store
        self._hooks = hooks
        limits = limits or ExecLimits()
        self._slots = Slots(limits.total, limits.each)
        self._threads = ThreadPoolExecutor(limits.total, "exec")
        self._stopping = Event()

    def exec_sync(
        self,
        vm_id: str,
        command: tuple[str, ...],
        timeout: float | None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> ExecResult:
        """Run a command and wait for its end.

        Args:
            vm_id: the VM.
            command: program and arguments.
            timeout: seconds; None for no limit.
            wanted: whether anybody still waits for the result; the command is killed once nobody
                does, and what is returned then means nothing.

        Raises:
            NotFound, FailedPrecondition: no such VM, it does not run, or it cannot run this.
            InvalidArgument: the command is empty or too long.
            ResourceExhausted: too many commands run.
            DeadlineExceeded: it did not end in time; it is killed.
            Unavailable: nobody in the guest runs commands.
        """
        argv = checked(command)
        self._refuse_when_stopping()
        machine = running_machine(self._store, vm_id)
        streams = CollectedStreams(OUTPUT_LIMIT, lambda: self._stopping.is_set() or not wanted())
        with self._slots.taken(vm_id):
            session = self._hooks.guest_exec(machine, GuestCommand(argv=argv, captured=True))
            code = session.run(streams, timeout)
        if self._stopping.is_set():
            raise Unavailable(
                f"the manager stops, and may have killed {argv[0]!r} in VM {machine.vm.name}: try "
                "again"
            )
        return ExecResult(code & 255, bytes(streams.output), bytes(streams.errors))

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        """Run a command for a streaming session.

        When the session is cancelled this returns at once; the command is killed on its thread.

        Raises:
            VirtletError: as for `exec_sync`.
        """
        argv = checked(request.command)
        self._refuse_when_stopping()
        machine = running_machine(self._store, request.container_id)
        command = GuestCommand(argv=argv, stdin=request.stdin, tty=request.tty)
        loop = asyncio.get_running_loop()
        bridged = BridgedStreams(loop, streams, self._stopping.is_set)
        self._slots.take(machine.vm.id)
        work = loop.run_in_executor(self._threads, self._serve, machine, command, bridged)
        # Nobody may be left to look at how it ended.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        sizes = asyncio.create_task(bridged.follow_size())
        try:
            return ExitStatus(await asyncio.shield(work) & 255)
        finally:
            bridged.leave()
            sizes.cancel()

    def _serve(self, machine: Machine, command: GuestCommand, streams: BridgedStreams) -> int:
        try:
            return self._hooks.guest_exec(machine, command).run(streams, None)
        finally:
            streams.close()
            self._slots.give_back(machine.vm.id)

    def _refuse_when_stopping(self) -> None:
        if self._stopping.is_set():
            raise Unavailable("the manager stops: try again when it is back")

    def close(self, grace: float) -> None:
        """End all commands.

        Args:
            grace: seconds to wait until they are killed in their guests.
        """
        self._stopping.set()
        if not self._slots.wait_until_free(grace):
            log.warning("commands in guests are not killed yet; the manager stops all the same")
        self._threads.shutdown(wait=False)
