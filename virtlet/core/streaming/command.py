"""Exec and attach sessions, whatever framing the client chose."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from virtlet.core.streaming.errors import ProtocolError, SessionEnded, StreamClosed
from virtlet.core.streaming.lifetime import Lifetime
from virtlet.core.streaming.sessions import (
    AttachRequest,
    AttachRunner,
    ExecRequest,
    ExecRunner,
    SessionStreams,
)
from virtlet.core.streaming.status import Status, exited, failed, success
from virtlet.errors import VirtletError

logger = logging.getLogger(__name__)

Job = Callable[[SessionStreams], Awaitable[Status]]


class CommandFraming(Protocol):
    """How one client carries the streams of a session."""

    async def run(self) -> None:
        """Read from the client until it hangs up.

        Raises:
            ProtocolError: the client broke the protocol.
            OSError: the connection broke.
        """

    async def open(self) -> SessionStreams:
        """Return the session's streams once the client has opened them.

        Raises:
            StreamsMissing: it did not do so in time.
        """

    async def finish(self, status: Status, *, client_fault: bool = False) -> None:
        """Close all streams, tell the client the result and take leave."""


async def serve_command(framing: CommandFraming, job: Job, lifetime: Lifetime) -> None:
    """Run a session to its end: the job's, the client's or the server's."""

    async def session() -> None:
        status = await job(await framing.open())
        await framing.finish(status)
        # The client hangs up first, lest what it still sends makes the kernel throw away what
        # it has not read; `run` then ends the session.
        await asyncio.sleep(lifetime.limits.linger_seconds)

    async def leave(ended: SessionEnded) -> None:
        fault = isinstance(ended, ProtocolError)
        await framing.finish(failed(str(ended)), client_fault=fault)

    await lifetime.spend(framing.run(), session(), leave=leave)


def exec_job(runner: ExecRunner, request: ExecRequest) -> Job:
    """Return the job of running a command."""

    async def job(streams: SessionStreams) -> Status:
        return exited((await runner.run(request, streams)).code)

    return _told(job, f"error executing command in container {request.container_id}")


def attach_job(runner: AttachRunner, request: AttachRequest) -> Job:
    """Return the job of joining a console."""

    async def job(streams: SessionStreams) -> Status:
        await runner.run(request, streams)
        return success()

    return _told(job, f"error attaching to container {request.container_id}")


def _told(job: Job, what: str) -> Job:
    """Return the job with its errors made into statuses for the client."""

    async def told(streams: SessionStreams) -> Status:
        try:
            return await job(streams)
        except VirtletError as error:
            return failed(f"{what}: {error}")
        except StreamClosed as error:
            return failed(f"{what}: {error}")
        except Exception:
            logger.exception("%s", what)
            return failed(f"{what}: an internal error; see the log of the node's virtlet")

    return told
