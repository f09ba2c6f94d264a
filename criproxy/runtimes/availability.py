"""Whether a runtime is there: connected, answering, or away, since when and why.

A call's error is the runtime's own word, or stands for an answer that never came. A runtime can
also be a proxy that leads back to this one, so every call of ours says which proxies it came
through. A proxy that gets a call that came through itself refuses it with its identity in the
trailers, which travel back as far as the proxy with this identity: that one then knows which of
its runtimes leads back to it. Other identities pass on with a call's metadata, so the circle may
be of any length.
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
#: A runtime that keeps the deadline of our call itself can be a little faster than we are.
_NEARLY = 0.9


class NotAnswered(RpcError):
    """A runtime gave a call no answer: it is away or silent, or was not in time."""


def judged(
    error: RpcError, *, seconds: float, timeout: float | None = None, leaving: bool
) -> RpcError:
    """The error that a call ended with, as a `NotAnswered` if it is none of the runtime's.

    Args:
        error: what the call ended with.
        seconds: that it took.
        timeout: seconds that the runtime was told it has.
        leaving: whether the runtime has gone or is about to: it may have ended all calls then.
    """
    overdue = timeout is not None and seconds >= _NEARLY * timeout
    in_time = error.code != Code.DEADLINE_EXCEEDED or not overdue
    own = isinstance(error, PeerError) and not leaving and in_time
    if error.code == Code.CANCELLED or (error.code in _SILENCE and not own):
        return NotAnswered(error.code, error.message, error.trailers)
    return error


#: Metadata of calls, one header for each proxy on the way; and of refusals, as the mark.
LOOP_HEADER = b"criproxy-loop"


def refuse_own(headers: Sequence[Header], identity: bytes) -> None:
    """Let a call pass that has not been here before.

    Raises:
        RpcError: FAILED_PRECONDITION, marked, when it has.
    """
    mark = (LOOP_HEADER, identity)
    if mark in headers:
        raise RpcError(
            Code.FAILED_PRECONDITION,
            "this is the calling criproxy itself: a socket in a loop",
            (mark,),
        )


def leads_back(error: RpcError, identity: bytes) -> bool:
    """Whether a call ended because it came back to the proxy with this identity."""
    return (LOOP_HEADER, identity) in error.trailers


#: A runtime that is another proxy tells reasons within reasons.
_LONGEST_REASON = 300
_NUMBERS = re.compile(r"\d+")


class Availability:
    """A runtime's coming and going, as its connector and its calls report it.

    Args:
        config: what it is called and where it is.
        grace: seconds for which its last known items are served while it is away.

    Attributes:
        last: what it last said it has.
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
        #: Set when the connector should look at the runtime now.
        self.look = asyncio.Event()

    @property
    def where(self) -> str:
        """The runtime in messages."""
        return f"CRI runtime {self.name}"

    @property
    def connected(self) -> bool:
        """Whether there is a connection; who is on it may be silent."""
        return self._connection is not None

    @property
    def answering(self) -> bool:
        """Whether calls can be sent, and the last ones were answered."""
        return self.away_since is None

    def away_error(self) -> NotAnswered:
        """What a call gets that needs this runtime while it is away."""
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

    def came(self, connection: ClientConnection) -> None:
        """A connection is there and the runtime has answered on it."""
        self._connection = connection
        self.connects += 1
        self.answers()

    def went(self, reason: str) -> None:
        """The connection is gone, or could not be made."""
        self._connection = None
        self._silent(reason)

    def answers(self) -> None:
        """The runtime has answered."""
        if self.away_since is not None:
            log.info("%s answers", self.where)
        self.away_since = None
        self.reason = ""
        self.last.seen = self.last.confirmed = True
        self._tell()

    def silent(self, reason: str) -> None:
        """The runtime is connected but does not answer."""
        if self.answering:
            self.look.set()
        self._silent(reason)

    def looped(self, reason: str) -> None:
        """It leads back to this proxy: what it seemed to have is ours, and others'."""
        owed, self.last = self.last.owed_update, LastKnown()
        self.last.owed_update = owed
        self.went(reason)
        self.look.set()

    def _silent(self, reason: str) -> None:
        reason = reason[:_LONGEST_REASON]
        # Seconds and the like change with every attempt; only another cause is news.
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

    def touched(self) -> None:
        """A call may have changed what the runtime has."""
        self.last.changed()
        self.look.set()
