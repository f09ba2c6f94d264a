"""Whether a runtime is there: connected, answering or away, since when and why; and late methods.

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
from contextlib import suppress

from attrs import define
from google.protobuf.message import DecodeError

from criproxy.config import RuntimeConfig
from criproxy.http2.endpoints import ClientConnection
from criproxy.http2.frames import Header
from criproxy.methods import BY_NAME, Method
from criproxy.rpc.messages import Code, PeerError, RpcError
from criproxy.rpc.outgoing import Done, Reply
from criproxy.runtimes.last_known import INVENTORY, LastKnown

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


#: Methods whose empty request asks for everything.
_COMPLETE = frozenset(
    (
        *INVENTORY,
        "Status",
        "ImageFsInfo",
        "ListContainerStats",
        "ListPodSandboxStats",
        "ListPodSandboxMetrics",
        "ListMetricDescriptors",
    )
)
#: Factor by which the proxy's own call waits longer than a client's for a late answer.
_PATIENCE = 6.0
_VERSION = BY_NAME["Version"]

#: Makes a unary call with an empty request; arguments are method, seconds and callback.
Ask = Callable[[Method, float, Done], object]


@define(eq=False)
class _Late:
    #: Age of the last known answer, as a monotonic time.
    since: float
    reason: str


class TimedOutMethods:
    """The late methods of one runtime.

    A late method is called again in the background until it is in time. A call of Version shows
    whether the whole runtime is silent.

    Args:
        where: the runtime's name in messages.
        limit: seconds within which an answer is in time.
        pause: seconds between two calls.
        ask: makes a call to the runtime.
        silent: called with the reason when the runtime answers nothing.
    """

    def __init__(
        self, where: str, limit: float, pause: float, ask: Ask, silent: Callable[[str], None]
    ) -> None:
        self._where = where
        self._limit = limit
        self._pause = pause
        self._ask = ask
        self._silent = silent
        self._late: dict[str, _Late] = {}
        self._probing = False

    def __contains__(self, name: str) -> bool:
        """Whether this method is late."""
        return name in self._late

    def since(self, name: str) -> float:
        """Return the time (monotonic) of the last known answer, or now if the method is in time."""
        late = self._late.get(name)
        return time.monotonic() if late is None else late.since

    def reason(self, name: str) -> str:
        """Return why a method is late; empty if it is in time."""
        late = self._late.get(name)
        return "" if late is None else late.reason

    def clear(self) -> None:
        """Forget all late methods: the runtime has connected again."""
        self._late.clear()

    def add(self, method: Method, seconds: float, last: LastKnown) -> None:
        """Add a method that was not answered in time; store later answers in `last`."""
        reason = f"no answer to {method.name} within {seconds:g} s"
        if method.name not in self._late and (method.streaming or method.name in _COMPLETE):
            log.warning("%s: %s", self._where, reason)
            self._late[method.name] = late = _Late(time.monotonic(), reason)
            if not method.streaming:
                self._again(method, late, last)
        self._probe(reason)

    def _probe(self, reason: str) -> None:
        if self._probing:
            return
        self._probing = True

        def done(result: Reply | RpcError) -> None:
            self._probing = False
            if isinstance(result, NotAnswered) and result.code == Code.DEADLINE_EXCEEDED:
                self._silent(f"{reason}, nor to Version")

        self._ask(_VERSION, self._limit, done)

    def _again(self, method: Method, late: _Late, last: LastKnown) -> None:
        if self._late.get(method.name) is not late:
            return
        asked = time.monotonic()

        def done(result: Reply | RpcError) -> None:
            if self._late.get(method.name) is not late:
                return
            if isinstance(result, Reply):
                with suppress(DecodeError):
                    last.store(method.name, result.payload, asked)
                late.since = asked
            if not isinstance(result, NotAnswered) and time.monotonic() - asked <= self._limit:
                log.info("%s answers to %s again", self._where, method.name)
                del self._late[method.name]
                return
            loop = asyncio.get_running_loop()
            loop.call_later(self._pause, self._again, method, late, last)
            if isinstance(result, NotAnswered):
                self._probe(late.reason)

        self._ask(method, self._limit * _PATIENCE, done)
