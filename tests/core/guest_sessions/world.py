"""A manager's part that runs commands, with a plugin whose guest is a Python function."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pluggy
from attrs import evolve, frozen

from tests.fakes import models
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.core.guest_sessions.executions import ExecLimits, Executions
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.model.disk import Disk
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
from virtlet.model.flavor import Flavor
from virtlet.model.vm import Console, Machine
from virtlet.streaming.handlers import SessionStreams, StreamClosed, TerminalSize

Guest = Callable[[GuestCommand, GuestStreams, float | None], int]


@frozen
class Session(ExecSession):
    """An ExecSession that is a function."""

    guest: Guest
    command: GuestCommand

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        return self.guest(self.command, streams, timeout)


@frozen
class Plugin:
    """Runs every command as the test says."""

    guest: Guest

    @hookimpl
    def virtlet_guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession:
        return Session(self.guest, command)


class World:
    """VMs and their Executions.

    `vm` runs, `other` runs too, `created` and `exited` do not.
    """

    def __init__(self, directory: Path, guest: Guest, limits: ExecLimits | None) -> None:
        self.store = Store(directory / "db")
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(Plugin(guest), "guest")
        hooks = Hooks(Registry(manager, ("guest",), (), {}))
        self.executions = Executions(self.store, hooks, limits)
        vm = models.vm(directory, plugins=("guest",))
        self.store.put_pod(PodRecord(vm.pod, PodPhase.READY))
        machine = Machine(
            vm=vm,
            flavor=Flavor(),
            root=Disk(path=directory / "root"),
            volumes=(),
            seed=None,
            console=Console(output=directory / "console.out", input=directory / "console.in"),
            accelerator="qemu",
            vmwrapper=directory / "vmwrapper",
        )
        for vm_id, phase in (
            ("vm", VmPhase.RUNNING),
            ("other", VmPhase.RUNNING),
            ("created", VmPhase.CREATED),
            ("exited", VmPhase.EXITED),
            ("creating", VmPhase.CREATING),
        ):
            known = evolve(vm, id=vm_id)
            self.store.put_vm(VmRecord(known, phase, machine=evolve(machine, vm=known)))


@contextlib.contextmanager
def running(directory: Path, guest: Guest, limits: ExecLimits | None = None) -> Iterator[World]:
    """A world for a while."""
    world = World(directory, guest, limits)
    try:
        yield world
    finally:
        world.executions.close(5)
        world.store.close()


class Sent:
    """A client's input: pieces, then its end, or silence."""

    def __init__(self, *pieces: bytes, silent: bool = False) -> None:
        self.pieces = [*pieces]
        self.silent = silent
        self.reads = 0

    async def read(self, limit: int = 65536) -> bytes:
        self.reads += 1
        if self.pieces:
            piece = self.pieces.pop(0)
            if piece[limit:]:
                self.pieces.insert(0, piece[limit:])
            return piece[:limit]
        if self.silent:
            await asyncio.Event().wait()
        return b""


class Received:
    """What a client received; it may stop listening, or never have room."""

    def __init__(self, *, closed: bool = False, stuck: bool = False) -> None:
        self.data = b""
        self.closed = closed
        self.stuck = stuck

    async def write(self, data: bytes) -> None:
        if self.closed:
            raise StreamClosed("the client has gone")
        if self.stuck:
            await asyncio.Event().wait()
        self.data += data

    async def close(self) -> None:
        """Nothing to do."""


async def _sizes(sizes: Sequence[tuple[int, int]]) -> AsyncIterator[TerminalSize]:
    for width, height in sizes:
        yield TerminalSize(width, height)


def session_streams(
    stdin: Sent | None = None,
    stdout: Received | None = None,
    stderr: Received | None = None,
    sizes: Sequence[tuple[int, int]] = (),
) -> SessionStreams:
    """A client's streams."""
    return SessionStreams(stdin, stdout, stderr, _sizes(sizes))
