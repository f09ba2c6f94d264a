"""Exec and attach sessions, whatever framing the client chose: streams, terminal sizes, results.

Source of the results: apimachinery/pkg/apis/meta/v1 and client-go/tools/remotecommand of
Kubernetes.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from attrs import frozen

from virtlet.errors import VirtletError
from virtlet.streaming.handlers import (
    AttachRequest,
    AttachRunner,
    ExecRequest,
    ExecRunner,
    InputStream,
    ProtocolError,
    SessionEnded,
    SessionStreams,
    StreamClosed,
    TerminalSize,
)
from virtlet.streaming.lifetime import Lifetime

logger = logging.getLogger(__name__)

# Go's client writes some 30 bytes; what is longer without being an object is no size.
_MAX_OBJECT = 256
_MAX_CELLS = 65535


@frozen
class Status:
    """A result, as JSON for protocols v4 and later and as text for earlier ones."""

    document: dict[str, Any]
    text: str

    def encode(self, *, as_json: bool) -> bytes:
        """Return what the error stream carries; success is no bytes at all before v4."""
        return json.dumps(self.document).encode() if as_json else self.text.encode()


def success() -> Status:
    """Return the status of a session that ended well."""
    return Status({"metadata": {}, "status": "Success"}, "")


def exited(code: int) -> Status:
    """Return the status of a command that ended with this code."""
    if code == 0:
        return success()
    message = f"command terminated with non-zero exit code: exit status {code}"
    return Status(
        {
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        },
        message,
    )


def failed(message: str) -> Status:
    """Return the status of a session that could not do its work."""
    return Status(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {message}",
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        },
        message,
    )


class Resizes:
    """The sizes on a stream, the newest only where several wait; nothing without a stream."""

    def __init__(self, stream: InputStream | None) -> None:
        self._stream = stream
        self._rest = ""

    def __aiter__(self) -> "Resizes":
        return self

    async def __anext__(self) -> TerminalSize:
        while self._stream is not None:
            try:
                piece = await self._stream.read()
            except OSError:
                piece = b""
            if not piece:
                break
            self._rest += piece.decode("latin-1")
            try:
                if (size := self._newest()) is not None:
                    return size
            except (ValueError, KeyError, TypeError):
                logger.warning("a client sent a terminal size that is none; its sizes are ignored")
                break
        self._stream = None
        raise StopAsyncIteration

    def _newest(self) -> TerminalSize | None:
        """Return the last whole object's size; an unfinished one is kept for later."""
        *objects, rest = self._rest.split("}")
        # A size has no objects within, so a brace that closes ends it.
        self._rest = rest.lstrip()
        if self._rest and (len(rest) > _MAX_OBJECT or self._rest[0] != "{"):
            raise ValueError("not a terminal size")
        size = None
        for text in objects:
            if len(text) > _MAX_OBJECT:
                raise ValueError("not a terminal size")
            document = json.loads(text + "}")
            size = TerminalSize(_cells(document["Width"]), _cells(document["Height"]))
        return size


def _cells(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_CELLS:
        raise ValueError("not a number of cells")
    return value


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
        # The client hangs up first, so that nothing it still sends makes the kernel throw away what
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
