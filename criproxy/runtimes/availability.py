"""Whether a runtime is there: connected, answering or away, since when and why.

A call's error comes from the runtime itself, or stands for a missing answer. A runtime can also be
a proxy that leads back to this one. So every call carries the identities of the proxies that it
passed. A proxy that gets a call with its own identity refuses it, with this identity in the
trailers. The proxy with the identity then knows which of its runtimes leads back to it. Other
identities pass with a call's metadata, so a loop can have any length.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Sequence

from criproxy.config.schema import RuntimeConfig
from criproxy.http2.endpoints import ClientConnection
from criproxy.http2.headers import Header
from criproxy.rpc.status import Code, PeerError, RpcError
from criproxy.runtimes.last_known import LastKnown

log = logging.getLogger(__name__)


#: Statuses of calls that were not answered.
_SILENCE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
#: A runtime that enforces our deadline itself can be slightly faster than we are.
_NEARLY = 0.9


class NotAnswered(RpcError):
    """A runtime did not answer a call: it is away, silent or too late."""


def judged(
    error: RpcError, *, seconds: float, timeout: float | None = None, leaving: bool
) -> RpcError:
    """Return a call's error, as a `NotAnswered` if it does not come from the runtime itself.

    Args:
        error: the call's error.
        seconds: duration of the call.
        timeout: deadline that was sent to the runtime, in seconds.
        leaving: whether the runtime is gone or about to go: it may have ended all calls.
    """
    overdue = timeout is not None and seconds >= _NEARLY * timeout
    in_time = error.code != Code.DEADLINE_EXCEEDED or not overdue
    own = isinstance(error, PeerError) and not leaving and in_time
    if error.code == Code.CANCELLED or (error.code in _SILENCE and not own):
        return NotAnswered(error.code, error.message, error.trailers)
    return error


#: Metadata with the identity of each proxy that a call passed; also in trailers of refusals.
LOOP_HEADER = b"criproxy-loop"


def refuse_own(headers: Sequence[Header], identity: bytes) -> None:
    """Refuse a call that passed this proxy before.

    Raises:
        RpcError: FAILED_PRECONDITION with this proxy's identity.
    """
    header = (LOOP_HEADER, identity)
    if header in headers:
        raise RpcError(
            Code.FAILED_PRECONDITION,
            "this is the calling criproxy itself: a socket in a loop",
            (header,),
        )


def leads_back(error: RpcError, identity: bytes) -> bool:
    """Whether a call ended because it came back to the proxy with this identity."""
    return (LOOP_HEADER, identity) in error.trailers


#: A runtime that is another proxy nests reasons.
_LONGEST_REASON = 300
_NUMBERS = re.compile(r"\d+")


class Availability:
    """Whether a runtime is there, as its connector and its calls report it.

    Args:
        config: the runtime's configuration.
        grace: seconds for which its last known items are served while it is away.

    Attributes:
        last: its last known items.
        away_since: monotonic time since which it does not answer, None while it does.
        reason: why it does not answer.
    """

    def __init__(self, config: RuntimeConfig, grace: float) -> None:
        self.config = config
        self.name = config.name
        self.grace = grace
        self.last = LastKnown()
        self.away_since: float | None = time.monotonic()
        self.reason = "not connected yet"
        self.connects = 0
        self._connection: ClientConnection | None = None
        self._listeners: list[Callable[[], None]] = []
        #: Set when the connector should check the runtime now.
        self.check_now = asyncio.Event()

    @property
    def where(self) -> str:
        """The runtime's name in messages."""
        return f"CRI runtime {self.name}"

    @property
    def connected(self) -> bool:
        """Whether there is a connection, even if the runtime does not answer on it."""
        return self._connection is not None

    @property
    def answering(self) -> bool:
        """Whether calls can be sent, and the last ones were answered."""
        return self.away_since is None

    def away_error(self) -> NotAnswered:
        """Return the error of calls to this runtime while it is away."""
        seconds = 0.0 if self.away_since is None else time.monotonic() - self.away_since
        reason = self.reason or "it does not answer"
        return NotAnswered(
            Code.UNAVAILABLE,
            f"{self.where} ({self.config.socket}) is away for {seconds:.0f} s: {reason}",
        )

    def within_grace(self) -> bool:
        """Whether its last known items may be served in its place."""
        if self.away_since is None or self.grace == math.inf:
            return True
        return time.monotonic() - self.away_since < self.grace

    def connection_made(self, connection: ClientConnection) -> None:
        """Note a connection on which the runtime has answered."""
        self._connection = connection
        self.connects += 1
        self.set_answering()

    def connection_lost(self, reason: str) -> None:
        """Note that the connection is gone, or could not be made."""
        self._connection = None
        self._set_away(reason)

    def set_answering(self) -> None:
        """Note that the runtime has answered."""
        if self.away_since is not None:
            log.info("%s answers", self.where)
        self.away_since = None
        self.reason = ""
        self.last.seen = self.last.confirmed = True
        self._tell()

    def set_silent(self, reason: str) -> None:
        """Note that the runtime is connected but does not answer."""
        if self.answering:
            self.check_now.set()
        self._set_away(reason)

    def set_looped(self, reason: str) -> None:
        """Note that it leads back to this proxy, and drop its items: other runtimes have them."""
        pending, self.last = self.last.pending_update, LastKnown()
        self.last.pending_update = pending
        self.connection_lost(reason)
        self.check_now.set()

    def _set_away(self, reason: str) -> None:
        reason = reason[:_LONGEST_REASON]
        # Numbers such as seconds change with every attempt: log only another cause.
        if _NUMBERS.sub("", reason) != _NUMBERS.sub("", self.reason):
            log.warning("%s (%s) is away: %s", self.where, self.config.socket, reason)
        self.reason = reason
        self.last.catch_up()
        if self.away_since is None:
            self.away_since = time.monotonic()
            self._tell()

    async def changed(self) -> None:
        """Wait until the runtime comes or goes."""
        waiter = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._listeners.append(wake)
        try:
            await waiter
        finally:
            self._listeners.remove(wake)

    def _tell(self) -> None:
        for wake in list(self._listeners):
            wake()

    def note_change(self) -> None:
        """Note that a call may have changed what the runtime has."""
        self.last.changed()
        self.check_now.set()
