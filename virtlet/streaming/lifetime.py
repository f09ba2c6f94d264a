"""Bounds of the streaming server, and how long its URLs and sessions live."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from attrs import field, frozen
from attrs.validators import gt

from virtlet.errors import ResourceExhausted
from virtlet.streaming.handlers import IdleTimeout, ProtocolError, ServerStopping, SessionEnded

KIB = 1024


@frozen(kw_only=True)
class SessionLimits:
    """Bounds; all times in seconds."""

    max_connections: int = field(default=512, validator=gt(0))
    """Client connections with a session at once; one more is answered 503."""

    max_waiting: int = field(default=64, validator=gt(0))
    """Connections that have shown no token yet; one more ends the oldest of them."""

    max_streams: int = field(default=1024, validator=gt(1))
    """SPDY streams at once on one connection; a forwarded connection takes two."""

    max_pending_tokens: int = field(default=1000, validator=gt(0))
    """URLs given out and not yet used, as in the kubelet's own server."""

    token_seconds: float = field(default=60, validator=gt(0))
    """How long a URL can be used."""

    head_seconds: float = field(default=5, validator=gt(0))
    """For the TLS handshake, and again for the HTTP request."""

    stream_creation_seconds: float = field(default=30, validator=gt(0))
    """For a client to open all the streams of its session, as in the kubelet."""

    dial_seconds: float = field(default=30, validator=gt(0))
    """For a pod to accept a forwarded connection."""

    idle_seconds: float = field(default=4 * 3600, validator=gt(0))
    """A connection without data (pings are none) for so long is closed, as in the kubelet."""

    silent_seconds: float = field(default=60, validator=gt(0))
    """How long a client's host may leave unacknowledged what it is sent again and again."""

    stall_seconds: float = field(default=30, validator=gt(0))
    """How long one forwarded stream whose pod reads nothing may hold up the others of its
    connection; ten times that where it holds up none that is known."""

    half_closed_seconds: float = field(default=30, validator=gt(0))
    """How long a forwarded connection that the pod has finished waits for the client to finish."""

    linger_seconds: float = field(default=5, validator=gt(0))
    """How long a finished session waits for its client to hang up first."""

    receive_buffer: int = field(default=1024 * KIB, validator=gt(0))
    """Bytes received on one connection and not yet taken by handlers; its streams share it."""

    write_buffer: int = field(default=256 * KIB, validator=gt(0))
    """Bytes of one connection waiting for the client's network."""


R = TypeVar("R")
Kind = TypeVar("Kind")

_RANDOM_BYTES = 24


@frozen
class _Pending(Generic[R]):
    request: R
    deadline: float


class TokenStore(Generic[R]):
    """Keeps each request until its token is redeemed or too old. Safe to use from any thread.

    Args:
        lifetime: seconds.
        limit: tokens at once; more is refused, so that a client cannot fill the memory.
        clock: monotonic seconds.
    """

    def __init__(
        self, lifetime: float, limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        # Insertion order is order of age: all live equally long.
        self._pending: dict[str, _Pending[R]] = {}

    def issue(self, request: R) -> str:
        """Return a new token, safe in a URL path, for the request.

        Raises:
            ResourceExhausted: too many tokens wait to be used.
        """
        with self._lock:
            self._drop_expired()
            if len(self._pending) >= self._limit:
                raise ResourceExhausted(
                    f"{self._limit} streaming URLs wait to be used; try again in "
                    f"{self._lifetime:g} seconds"
                )
            token = secrets.token_urlsafe(_RANDOM_BYTES)
            self._pending[token] = _Pending(request, self._clock() + self._lifetime)
            return token

    def redeem(self, token: str, kind: type[Kind]) -> Kind | None:
        """Return the token's request, once; None for one unknown, used, too old or another kind."""
        with self._lock:
            self._drop_expired()
            pending = self._pending.get(token)
            if pending is None or not isinstance(pending.request, kind):
                return None
            del self._pending[token]
            return pending.request

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._pending:
            token, oldest = next(iter(self._pending.items()))
            if oldest.deadline > now:
                return
            del self._pending[token]


logger = logging.getLogger(__name__)


async def first_of(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run the jobs at once; when the first ends, cancel the others and wait for them.

    Raises:
        BaseException: what the job that ended first raised.
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*tasks)
    for task in tasks:
        if task in done:
            task.result()


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until each has cleaned up, whatever it raises.

    Cancelled meanwhile, the caller waits on all the same, since what it does next relies on the
    tasks' end, and is cancelled then.
    """
    for task in tasks:
        task.cancel()
    interrupted = None
    while unfinished := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(unfinished)
        except asyncio.CancelledError as error:
            interrupted = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio complains of errors that nobody looked at
    if interrupted:
        raise interrupted


class Activity:
    """The time of the last data in either direction."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    def touch(self) -> None:
        """Data moved just now."""
        self._last = self._clock()

    async def watch(self, seconds: float) -> None:
        """Return never; raise IdleTimeout after so many seconds without a touch."""
        while (left := self._last + seconds - self._clock()) > 0:
            await asyncio.sleep(left)
        raise IdleTimeout(f"closed after {seconds:g} seconds without data")


@frozen
class Lifetime:
    """What may end a session from outside.

    Args:
        name: of the session, for the log.
        stopping: set when the server stops.
    """

    name: str
    activity: Activity
    stopping: asyncio.Event
    limits: SessionLimits

    async def spend(
        self,
        *jobs: Coroutine[Any, Any, None],
        leave: Callable[[SessionEnded], Awaitable[None]],
    ) -> None:
        """Run the jobs until the first of them ends, or something ends all.

        Args:
            leave: tells the client why, when the session ends before its work.
        """
        try:
            await first_of(*jobs, self.activity.watch(self.limits.idle_seconds), self._stop())
        except OSError as error:
            logger.debug("%s: the client went away: %s", self.name, error)
        except SessionEnded as ended:
            level = logging.WARNING if isinstance(ended, ProtocolError) else logging.INFO
            logger.log(level, "%s ends early: %s", self.name, ended)
            try:
                async with asyncio.timeout(self.limits.linger_seconds):
                    await leave(ended)
            except OSError as error:  # of which TimeoutError is one
                logger.debug("%s: the client could not be told: %s", self.name, error)

    async def _stop(self) -> None:
        await self.stopping.wait()
        raise ServerStopping("the streaming server is stopping")
