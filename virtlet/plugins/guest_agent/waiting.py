"""How long a caller waits: for an answer, for a change to poll for, for a guest that boots."""

import math
import time
from collections.abc import Callable

from attrs import define

from virtlet.threads import BackOff

SLICE = 0.25
"""Seconds of the longest single wait, so that a caller who goes away is noticed."""

BOOT_LIMIT = 300.0
"""Seconds of the default; Debian's cloud image takes 45 to 90 without KVM."""


class TimeUp(Exception):
    """The time is over."""


class CallerGone(Exception):
    """The caller has left."""


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
            CallerGone: the caller has left.
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


def polling(longest: float) -> BackOff:
    """Pauses between looks, up to `longest` seconds: each about an eighth of the time waited.

    What ends soon is seen soon, and what lasts costs few looks.
    """
    return BackOff(0.001, longest, growth=1.125, jitter=0.0)


@define
class Boot:
    """The boot of one VM."""

    limit: float = BOOT_LIMIT
    """Seconds that it may take."""
    since: int = 0
    """Nanoseconds since the epoch: when the VM was made, right before it started."""
    configured: bool = False
    """Whether the guest has applied its seed, or cannot tell, or was waited for long enough."""

    @property
    def over(self) -> bool:
        """Whether the guest has had its time."""
        return time.time() - self.since / 1e9 > self.limit

    def advice(self, waited: float, *, limited: bool, whole: bool) -> str:
        """What to do for a guest that is not ready.

        Args:
            waited: seconds that the caller has waited for it.
            limited: whether the caller set a limit, as exec probes do.
            whole: whether a caller without one waited as long as a boot may take.
        """
        setting = "guestAgentTimeout (--guest-agent-timeout)"
        if limited:
            return (
                f"waited {waited:g} s; a startupProbe, timeoutSeconds or initialDelaySeconds gives "
                f"a probe's guest more time, and until {self.limit:g} s after the VM's creation, "
                f"the node's setting {setting}, this counts as no failure"
            )
        if not whole:
            return f"waited {waited:g} s: try again when it has booted"
        return f"waited {waited:g} s; the node's setting {setting} gives guests more time"
