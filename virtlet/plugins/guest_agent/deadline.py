"""How long somebody waits, and how often one looks at something that does not tell by itself."""

import math
import time
from collections.abc import Callable

SLICE = 0.25
"""Seconds of the longest single wait, so that a caller who goes away is noticed."""


class TimeUp(Exception):
    """The time is over."""


class CallerGone(Exception):
    """Nobody waits for the result any more."""


class Deadline:
    """Until when a caller waits.

    Args:
        seconds: from now; None for no limit.
        gone: whether the caller has gone away.
    """

    def __init__(self, seconds: float | None, gone: Callable[[], bool] = lambda: False) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._gone = gone

    @property
    def limited(self) -> bool:
        """Whether it ever ends."""
        return self._end != math.inf

    def within(self, seconds: float) -> "Deadline":
        """The same caller's patience, for at most `seconds` from now."""
        shorter = Deadline(None, self._gone)
        shorter._end = min(self._end, time.monotonic() + seconds)
        return shorter

    def slice(self) -> float:
        """Seconds (above 0) to wait before looking again.

        Raises:
            TimeUp: the time is over.
            CallerGone: nobody waits any more.
        """
        if self._gone():
            raise CallerGone
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeUp
        return min(left, SLICE)

    def pause(self, seconds: float) -> None:
        """Sleep, but not past the end; errors as for `slice`."""
        time.sleep(min(seconds, self.slice()))


class Pace:
    """Pauses between looks: an eighth of the time since the last change, within bounds.

    What ends soon is seen soon, and what lasts costs few looks.

    Args:
        longest: seconds of the longest pause.
    """

    SHORTEST = 0.001

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self.changed()

    def changed(self) -> None:
        """Something happened: look often again."""
        self._since = time.monotonic()

    def pause(self) -> float:
        """Seconds until the next look."""
        waited = time.monotonic() - self._since
        return min(self._longest, max(self.SHORTEST, waited / 8))
