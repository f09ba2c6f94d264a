"""Who finds, fetches and recognises images for a handler."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from attrs import frozen

from virtlet.model.image import Credentials, FetchedImage, ImageSource, RecognizedImage, Staging

Recognize = Callable[[str, Path], tuple[str, RecognizedImage]]
"""Says which plugin knows what an image is, and what, given the image's name and file."""


class Fetch(Protocol):
    """Writes the content of a source into a staging file, as `virtlet_fetch_image` does."""

    def __call__(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        """Fetch, or raise."""
        raise NotImplementedError


@frozen
class Route:
    """A handler's way to its images: the hooks, bound to the handler's profile."""

    scope: str
    """Tells routes apart; pulls of one source share their work within one scope only."""
    resolve: Callable[[str], ImageSource]
    fetch: Fetch
    recognize: Recognize
    handler: str = ""
    """Whose way it is, to be remembered with what comes over it."""
