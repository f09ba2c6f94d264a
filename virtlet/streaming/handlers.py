"""What a streaming session is made of: requests, streams, results, errors and who serves them.

The server knows nothing of VMs. The core gives it three handlers; each runs on the server's
event loop, and is cancelled when its client goes away, so it cleans up in `finally`.
"""

import socket
from collections.abc import AsyncIterator
from typing import Protocol

from attrs import field, frozen, validators

from virtlet.errors import InvalidArgument


class StreamClosed(BrokenPipeError):
    """The client's end of a stream, or its whole connection, is gone: stop writing."""


class SessionEnded(Exception):
    """A session ends before its work is done; the client is shown the message."""


class ProtocolError(SessionEnded):
    """The client broke the protocol, so that nothing it sends can be understood any more."""


class StreamsMissing(SessionEnded):
    """The client did not open the streams of its session in time."""


class IdleTimeout(SessionEnded):
    """Nothing moved on the connection for the allowed time."""


class ServerStopping(SessionEnded):
    """The server shuts down."""


@frozen(kw_only=True)
class ExecRequest:
    """A command to run, and the streams its caller wants to see.

    Raises:
        InvalidArgument: no stream is asked for, or a terminal with a separate stderr.
    """

    container_id: str
    command: tuple[str, ...]
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    def __attrs_post_init__(self) -> None:
        _check_streams(self.stdin, self.stdout, self.stderr, self.tty)


@frozen(kw_only=True)
class AttachRequest:
    """A console to join, and the streams the caller wants.

    Raises:
        InvalidArgument: no stream is asked for, or a terminal with a separate stderr.
    """

    container_id: str
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    def __attrs_post_init__(self) -> None:
        _check_streams(self.stdin, self.stdout, self.stderr, self.tty)


@frozen(kw_only=True)
class PortForwardRequest:
    """A pod whose ports a client may reach.

    `ports` serves only the old WebSocket protocol, in which the client cannot name a port
    itself; every other client names the port with each connection.

    Raises:
        InvalidArgument: a port is not between 1 and 65535, or there are over 127 of them (two
            channel numbers of one byte each per port).
    """

    sandbox_id: str
    ports: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        if bad := [port for port in self.ports if not 1 <= port <= 65535]:
            raise InvalidArgument(f"port {bad[0]} is not between 1 and 65535")
        if len(self.ports) > 127:
            raise InvalidArgument(f"{len(self.ports)} ports in one request; at most 127 fit")


def _check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
    # The rules of the kubelet's own streaming server.
    if not (stdin or stdout or stderr):
        raise InvalidArgument("ask for at least one of stdin, stdout and stderr")
    if tty and stderr:
        raise InvalidArgument("a terminal has no separate stderr: ask for tty or stderr, not both")


@frozen
class ExitStatus:
    """How a command ended; a death by signal N is 128 + N, as shells have it."""

    code: int = field(validator=[validators.ge(0), validators.le(255)])


@frozen
class TerminalSize:
    """A terminal's size in characters."""

    width: int
    height: int


class InputStream(Protocol):
    """What the client sends."""

    async def read(self, limit: int = 65536) -> bytes:
        """Return 1 to `limit` bytes, waiting for some; b"" once the client has finished."""


class OutputStream(Protocol):
    """What the client receives."""

    async def write(self, data: bytes) -> None:
        """Send data; returns when there is room for more.

        Raises:
            StreamClosed: the client no longer listens.
        """

    async def close(self) -> None:
        """Tell the client that nothing more follows; the end of the session does so too."""


@frozen
class SessionStreams:
    """The streams of one exec or attach session; None where the request did not ask for one.

    `resizes` yields the client's terminal sizes, the newest only where several came since the
    last look, and ends with the client's stream of them. Without a terminal it ends at once.
    """

    stdin: InputStream | None
    stdout: OutputStream | None
    stderr: OutputStream | None
    resizes: AsyncIterator[TerminalSize]


class ExecRunner(Protocol):
    """Runs a command for a client."""

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        """Run the command to its end.

        Raises:
            VirtletError: the client is shown its message. Any other exception is logged, and
                the client is told of an internal error only.
        """


class AttachRunner(Protocol):
    """Joins a client to a console."""

    async def run(self, request: AttachRequest, streams: SessionStreams) -> None:
        """Stay until the client detaches or the console ends; errors as for `ExecRunner`."""


class PortDialer(Protocol):
    """Reaches the ports of a pod."""

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        """Return a connected stream socket; the server makes it non-blocking and closes it.

        Raises:
            OSError: nothing answers there; the client is told the system's reason.
            VirtletError: the client is shown its message.
        """


@frozen(kw_only=True)
class Handlers:
    """Who serves the sessions."""

    exec: ExecRunner
    attach: AttachRunner
    ports: PortDialer
