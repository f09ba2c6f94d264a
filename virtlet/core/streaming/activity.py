"""Notices a connection over which nothing has moved for long."""

import asyncio

from virtlet.core.streaming.errors import IdleTimeout


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
