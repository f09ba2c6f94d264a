"""A plugin's hold on a staging file."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from virtlet.images.staging import StagingFile

log = logging.getLogger(__name__)


class Lease:
    """A plugin's hold on a staging file, for one fetch.

    A plugin that waits for its server cannot be ended from outside; the lease can: whatever the
    plugin asks of it after that raises Unavailable, and what the plugin gave it is closed.
    """

    def __init__(self, staging: StagingFile) -> None:
        self._staging = staging
        self._lock = threading.Lock()
        self._ended = False
        self._closers: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.size

    @property
    def validator(self) -> str:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.validator

    @property
    def complete(self) -> bool:
        """See `virtlet.model.image.Staging`."""
        with self._held() as staging:
            return staging.complete

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        """See `StagingFile.begin`."""
        with self._held() as staging:
            staging.begin(validator, offset, total)

    def write(self, chunk: bytes) -> None:
        """See `StagingFile.write`."""
        with self._held() as staging:
            staging.write(chunk)

    def at_end(self, close: Callable[[], None]) -> None:
        """See `virtlet.model.image.Staging`."""
        with self._held():
            self._closers.append(close)

    def end(self) -> None:
        """Refuse whatever is asked from now on, and close what was given; idempotent."""
        with self._lock:
            self._ended = True
            closers, self._closers = self._closers, []
        for close in closers:
            try:
                close()
            except Exception:
                log.exception(
                    "image plugin failed at the end of its fetch",
                    extra={"image": self._staging.name},
                )

    @contextlib.contextmanager
    def _held(self) -> Iterator[StagingFile]:
        with self._lock:
            if self._ended:
                # Another fetch may be at the file already: this one must not see what it has.
                raise self._staging.cancelled()
            yield self._staging
