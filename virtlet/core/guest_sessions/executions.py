"""Running commands in guests, for ExecSync and for streaming sessions."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from attrs import field, frozen
from attrs.validators import gt

from virtlet.core.guest_sessions.exec_streams import BridgedStreams, CollectedStreams
from virtlet.core.hooks.facade import Hooks
from virtlet.core.store.records import VmPhase
from virtlet.core.store.store import Store
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from virtlet.model.execution import GuestCommand
from virtlet.model.vm import Machine
from virtlet.streaming.handlers import ExecRequest, ExitStatus, SessionStreams

log = logging.getLogger(__name__)


COMMAND_LIMIT = 128 << 10
"""Bytes of a command, all its arguments together: what Linux takes as one argument, and far more
than anyone types."""

OUTPUT_LIMIT = 16 << 20
"""Bytes kept of each output stream of ExecSync; source: the CRI definition."""


OUTPUT_OF_VM = 2 * OUTPUT_LIMIT
"""Bytes of output kept for all the commands of one VM that run at one time."""
OUTPUT_OF_NODE = 4 * OUTPUT_OF_VM
"""The same for all VMs."""


def checked(command: Sequence[str]) -> tuple[str, ...]:
    """A command as it was asked for.

    Raises:
        InvalidArgument: it is empty, too long, or holds what no argument can hold.
    """
    if not command or not command[0]:
        raise InvalidArgument("the command is empty: name a program")
    size = sum(len(argument.encode()) + 1 for argument in command)
    if size > COMMAND_LIMIT:
        raise InvalidArgument(
            f"the command has {size} bytes, at most {COMMAND_LIMIT} are taken: send what is long "
            "over its standard input"
        )
    if any("\0" in argument for argument in command):
        raise InvalidArgument("an argument of the command has a zero byte in it")
    return tuple(command)


def running_machine(store: Store, vm_id: str) -> Machine:
    """The machine of a VM that runs.

    Raises:
        NotFound: there is no such VM.
        FailedPrecondition: it does not run.
    """
    record = store.known_vm(vm_id)
    if record.phase is not VmPhase.RUNNING or record.machine is None:
        raise FailedPrecondition(
            f"VM {record.vm.name} is {record.state}: commands need a running one"
        )
    return record.machine


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


class KeptOutput:
    """Counts the bytes of output that are kept; safe to use from any thread.

    Args:
        total: of all VMs.
        each: of one VM.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._kept: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, vm_id: str) -> Iterator[Callable[[int], int]]:
        """Yield what says how many of so many bytes one more command of a VM may keep."""
        kept = 0

        def room(size: int) -> int:
            nonlocal kept
            with self._lock:
                left = min(self._each - self._kept[vm_id], self._total - self._kept.total())
                size = min(size, left)
                self._kept[vm_id] += size
            kept += size
            return size

        try:
            yield room
        finally:
            with self._lock:
                self._kept[vm_id] -= kept
                if not self._kept[vm_id]:
                    del self._kept[vm_id]


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
        answered: called with the id of a VM whose guest has run a command.
    """

    def __init__(
        self,
        store: Store,
        hooks: Hooks,
        limits: ExecLimits | None = None,
        answered: Callable[[str], None] = lambda vm_id: None,
    ) -> None:
        self._answered = answered
        self._store = store
        self._hooks = hooks
        limits = limits or ExecLimits()
        self._slots = Slots(limits.total, limits.each)
        self._kept = KeptOutput(OUTPUT_OF_NODE, OUTPUT_OF_VM)
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
        with self._slots.taken(vm_id), self._kept.of(vm_id) as room:
            streams = CollectedStreams(
                OUTPUT_LIMIT, lambda: self._stopping.is_set() or not wanted(), room
            )
            session = self._hooks.guest_exec(machine, GuestCommand(argv=argv, captured=True))
            code = session.run(streams, timeout)
            self._answered(vm_id)
            if self._stopping.is_set():
                raise Unavailable(
                    f"the manager stops, and may have killed {argv[0]!r} in VM {machine.vm.name}: "
                    "try again"
                )
            output = bytes(streams.output)
            streams.output.clear()  # not both copies of each
            return ExecResult(code & 255, output, bytes(streams.errors))

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
            code = self._hooks.guest_exec(machine, command).run(streams, None)
            self._answered(machine.vm.id)
            return code
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
