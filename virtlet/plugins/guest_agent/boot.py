"""A guest that boots: how long it is waited for, and what is said of it."""

import time

from attrs import define

BOOT_LIMIT = 300.0
"""Seconds of the default; Debian's cloud image takes 45 to 90 without KVM."""


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
