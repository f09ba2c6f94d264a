"""An image server without a network: resolves and fetches as plugins do, and breaks on demand."""

import threading
from collections.abc import Callable

from tests.images.disks import recognize
from virtlet.errors import InvalidArgument, NotFound, Unavailable
from virtlet.images.pull import ImageRoute
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging
from virtlet.model.reference import Reference

Step = Callable[[], None]


class FakeImageSource:
    """Serves contents by name, under the address `fake://NAME`.

    Attributes:
        contents: what each name leads to.
        validators: version of each content; none means that it cannot be resumed.
        breaks: for each coming fetch, after how many bytes of its own it breaks; None for never.
        fetches: names fetched so far.
        sent: bytes sent so far.
        before_write: called before each chunk.
    """

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.validators: dict[str, str] = {}
        self.breaks: list[int | None] = []
        self.fetches: list[str] = []
        self.credentials: list[Credentials] = []
        self.sent = 0
        self.before_write: Step = lambda: None
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def route(self, scope: str = "") -> ImageRoute:
        """The way to this server."""
        return ImageRoute(scope, self.resolve, self.fetch, recognize)

    def resolve(self, reference: Reference) -> ImageSource:
        """As virtlet_resolve_image; each tag is an image of its own, but `latest` is none."""
        name = reference.tagged.removesuffix(":latest")
        if name == "malformed":
            raise InvalidArgument("image name 'malformed' is malformed")
        return ImageSource(name=name, url=f"fake://{name}", digest=reference.digest)

    def fetch(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        """As virtlet_fetch_image, 1000 bytes at a time."""
        with self._lock:
            self.fetches.append(source.name)
            self.credentials.append(credentials)
            left = self.breaks.pop(0) if self.breaks else None
        if self.error is not None:
            raise self.error
        content = self.contents.get(source.name)
        if content is None:
            raise NotFound(f"image {source.name}: not here")
        validator = self.validators.get(source.name, "")
        same = bool(validator) and staging.validator == validator
        if same and staging.complete:
            return FetchedImage(size=len(content))
        offset = staging.size if same else 0
        staging.begin(validator, offset, len(content))
        while offset < len(content):
            self.before_write()
            if left is not None and left <= 0:
                raise Unavailable(f"image {source.name}: the connection broke")
            chunk = content[offset : offset + 1000]
            staging.write(chunk)
            self.sent += len(chunk)
            offset += len(chunk)
            left = None if left is None else left - len(chunk)
        return FetchedImage(size=len(content))
