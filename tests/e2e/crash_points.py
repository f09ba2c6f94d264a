"""The places where a node's manager may crash (virtlet.core.lifecycle.journal)."""

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen


@frozen
class CrashPoints:
    """What a manager passes, and where it is to die.

    Args:
        directory: for two files, which need not be there.
    """

    directory: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What the manager has to be started with."""
        return {
            "VIRTLET_TRACE_POINTS": str(self._trace),
            "VIRTLET_CRASH_POINT_FILE": str(self._deadly),
        }

    @property
    def _trace(self) -> Path:
        return self.directory / "points-passed"

    @property
    def _deadly(self) -> Path:
        return self.directory / "crash-point"

    def passed_in(self, work: Callable[[], object]) -> list[str]:
        """Names of all places that some work passes, in order."""
        self._trace.write_bytes(b"")
        work()
        return self.passed

    @property
    def passed(self) -> list[str]:
        """Names of all places that were passed since the last `passed_in` or `die_at`, in order."""
        return list(dict.fromkeys(self._trace.read_text().splitlines()))

    def die_at(self, point: str) -> None:
        """Have the manager kill itself the next time it comes to a place."""
        self._trace.write_bytes(b"")
        # Written whole, because it is read all the time.
        new = self._deadly.with_suffix(".new")
        new.write_text(point)
        new.rename(self._deadly)

    def live(self) -> None:
        """Have the manager not kill itself any more."""
        self._deadly.unlink(missing_ok=True)
