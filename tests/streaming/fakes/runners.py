"""Runners that show one trait of a session each."""

import asyncio

from attrs import Factory, define

from virtlet.errors import FailedPrecondition
from virtlet.streaming import ExecRequest, ExitStatus, SessionStreams, TerminalSize


@define
class Waiting:
    """Takes nothing and says nothing until it is cancelled, or let go."""

    started: asyncio.Event = Factory(asyncio.Event)
    cancelled: asyncio.Event = Factory(asyncio.Event)
    release: asyncio.Event = Factory(asyncio.Event)

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return ExitStatus(0)


@define
class Failing:
    """Cannot run anything."""

    error: Exception = FailedPrecondition("the guest has no agent; install qemu-guest-agent in it")

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        raise self.error


@define
class Flooding:
    """Writes without end; counts how much was taken from it."""

    taken: int = 0
    gone: asyncio.Event = Factory(asyncio.Event)

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        assert streams.stdout
        try:
            while True:
                await streams.stdout.write(bytes(65536))
                self.taken += 65536
        finally:
            self.gone.set()


@define
class Sizes:
    """Reports the terminal sizes it is told, and ends with them."""

    seen: list[TerminalSize] = Factory(list)

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        assert streams.stdout
        async for size in streams.resizes:
            self.seen.append(size)
            await streams.stdout.write(f"{size.width}x{size.height}\n".encode())
        return ExitStatus(0)
