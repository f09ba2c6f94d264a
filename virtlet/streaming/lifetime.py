"""How long a session lives: until its work, its client, its idleness or the server ends it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from attrs import frozen

from virtlet.streaming.limits import Limits
from virtlet.streaming.sessions import IdleTimeout, ProtocolError, ServerStopping, SessionEnded

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
    limits: Limits

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
