"""Named places where a crash may fall, so that tests can make it fall there.

The journal passes a point before and after everything it does. In service nothing happens there.
Two environment variables are for the crash tests alone: VIRTLET_TRACE_POINTS names a file that
every passed point is appended to, VIRTLET_CRASH_POINT_FILE one that may hold the name of the point
where the manager is to kill itself, once: it takes the file away with it.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

Points = Callable[[str], None]


def from_environment(environment: Mapping[str, str]) -> Points:
    """The points' action that the environment asks for."""
    trace = environment.get("VIRTLET_TRACE_POINTS")
    crash = environment.get("VIRTLET_CRASH_POINT_FILE")
    if not trace and not crash:
        return lambda point: None

    def reach(point: str) -> None:
        if trace:
            with open(trace, "a") as file:
                file.write(f"{point}\n")
        if crash and _wanted(Path(crash)) == point:
            os.unlink(crash)
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def _wanted(crash: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return crash.read_text()
    return ""
