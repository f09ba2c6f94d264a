"""How long a session lives: until its work, its client, its idleness or the server ends it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from attrs import frozen

from virtlet.core.streaming.activity import Activity
from virtlet.core.streaming.errors import ProtocolError, ServerStopping, SessionEnded
from virtlet.core.streaming.limits import Limits
from virtlet.core.streaming.tasks import first_of

logger = logging.getLogger(__name__)


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
