"""How slow a server of images may be."""

import time
from collections.abc import Callable, Iterator

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.image_servers.reach import Reach

WINDOW = 60.0
"""Seconds over which a server's rate is measured."""


@frozen
class Bounds:
    """What the node's settings allow a download."""

    reach: Reach = Reach()
    least_rate: int = 0
    """Bytes a second, over each minute of waiting for the server; 0 is any."""


class Pace:
    """Notices that a server sends less than it has to.

    Only time spent waiting for the server counts, not what it takes to store what came.

    Args:
        least_rate: bytes a second; 0 is any.
        clock: seconds that go on steadily.
    """

    def __init__(self, least_rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least_rate * WINDOW
        self._clock = clock
        self._waited = 0.0
        self._bytes = 0

    def chunks(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass chunks on.

        Raises:
            TimeoutError: less came within a window.
        """
        while True:
            before = self._clock()
            chunk = next(chunks, None)
            if chunk is None:
                return
            self._waited += self._clock() - before
            self._bytes += len(chunk)
            if self._waited >= WINDOW:
                if self._bytes < self._least:
                    raise TimeoutError
                self._waited, self._bytes = 0.0, 0
            yield chunk


def paced(image: str, server: str, chunks: Iterator[bytes], least_rate: int) -> Iterator[bytes]:
    """Pass on what a server sends.

    Args:
        image: the image's name, for messages.
        server: the server's, for messages.
        chunks: what it sends.
        least_rate: bytes a second; 0 is any.

    Raises:
        FailedPrecondition: it comes more slowly.
    """
    try:
        yield from Pace(least_rate).chunks(chunks)
    except TimeoutError:
        raise FailedPrecondition(
            f"image {image}: {server} sends less than {least_rate} bytes a second, so that it "
            "would hold up other pulls; use a faster server, or set imageLeastRate lower"
        ) from None
