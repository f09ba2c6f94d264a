"""Pulling: from a name to an image in the store."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attrs import frozen

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from virtlet.images.image_store import ImageStore, Recognize
from virtlet.images.lease import Lease
from virtlet.images.singleflight import Abandoned, SingleFlight, apart, wait_for
from virtlet.images.staging import StagingFile
from virtlet.model.image import (
    Conversion,
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.reference import Reference, is_digest
from virtlet.threads import BackOff

log = logging.getLogger(__name__)

T = TypeVar("T")
ANONYMOUS = Credentials()
TELL_AFTER = 30.0
"""Seconds from one line of the log about a download to the next."""
MOST_LEFT = 64
"""Threads that hang in a plugin for nobody; each may hold a connection too."""


def always() -> bool:
    """The answer of a caller that waits for as long as it takes."""
    return True


class Fetch(Protocol):
    """Writes the content of a source into a staging file, as `virtlet_fetch_image` does."""

    def __call__(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        """Fetch, or raise."""
        raise NotImplementedError


@frozen
class ImageRoute:
    """Who finds, fetches and recognises images for a handler: its profile's hooks."""

    scope: str
    """Tells routes apart; pulls of one source share their work within one scope only."""
    resolve: Callable[[Reference], ImageSource]
    fetch: Fetch
    recognize: Recognize
    unpack: Callable[[str, bytes], Conversion | None] = lambda name, head: None
    """Says what unpacks content, given the image's name and its beginning."""
    handler: str = ""
    """Whose way it is, to be remembered with what comes over it."""


@frozen
class Retry:
    """How to go on after a break."""

    attempts: int = 20
    """Tries in one pull; each after the first follows one that broke and had got further."""
    delay: float = 0.5
    """Seconds between the first two; each further pause is longer."""
    longest_delay: float = 10.0
    """Seconds of the longest pause."""
    keep_parts: float = 1800.0
    """Seconds that a broken download waits for the next pull of its source."""


@frozen
class Progress:
    """How far a pull is."""

    name: str
    size: int
    """Bytes there."""
    total: int | None
    """Bytes in all, where known."""
    reference: Reference
    """What it is pulled as."""


@frozen
class _Work:
    """A download that can be shared: everything that decides what it brings."""

    reference: Reference
    """What to publish it under."""
    scope: str
    source: ImageSource
    credentials: Credentials


class Images:
    """The images of the node, by whatever name a request uses.

    Args:
        store: where they are kept.
        retry: how to go on after a break.
        most_left: calls of plugins that may be left behind, that is, go on although nobody waits
            for them.
    """

    def __init__(
        self, store: ImageStore, retry: Retry | None = None, most_left: int = MOST_LEFT
    ) -> None:
        self.store = store
        self._retry = retry or Retry()
        self._most_left = most_left
        self._left: set[Future[Any]] = set()
        self._flights: SingleFlight[Image] = SingleFlight()
        self._lock = threading.Lock()
        self._under_way: dict[_Work, StagingFile] = {}
        self._broken: dict[Hashable, StagingFile] = {}

    def pull(
        self,
        reference: Reference,
        route: ImageRoute,
        credentials: Credentials = ANONYMOUS,
        wanted: Callable[[], bool] = always,
    ) -> Image:
        """Bring an image into the store.

        A pull of the same name and source with the same credentials that is under way is joined:
        both get its outcome, whatever it is. It goes on for as long as any of them waits.

        Args:
            reference: what a pod calls it.
            route: who finds, fetches and recognises it.
            credentials: for the image's server.
            wanted: whether the caller still waits; asked often, from any pull's thread.

        Raises:
            InvalidArgument: a plugin refuses the name, or a VM cannot start from the content.
            NotFound, PermissionDenied: the server says so.
            ResourceExhausted: the image is too large, or too many cancelled pulls have not ended.
            FailedPrecondition: the content has another digest than asked for.
            Unavailable: the server cannot be reached, or the caller went away.
        """
        if not reference.name:
            image = self.store.get(reference)
            if image is None:
                raise NotFound(
                    f"image {reference}: an id says where nothing is; pull it by its name"
                )
            return image
        source = route.resolve(reference)
        if source.digest and not is_digest(source.digest):
            raise InvalidArgument(f"image {source.name}: digest {source.digest!r} is not sha256:…")
        work = _Work(reference, route.scope, source, credentials)
        try:
            return self._flights.run(work, partial(self._bring, work, route), wanted)
        except Abandoned:
            raise Unavailable(
                f"image {source.name}: the pull was cancelled by its caller"
            ) from None

    def progress(self) -> tuple[Progress, ...]:
        """How far the pulls under way are."""
        with self._lock:
            under_way = list(self._under_way.items())
        return tuple(Progress(s.name, s.size, s.total, work.reference) for work, s in under_way)

    def close(self) -> None:
        """Let go of broken downloads."""
        with self._lock:
            broken, self._broken = self._broken, {}
        for staging in broken.values():
            staging.discard()

    def _bring(self, work: _Work, route: ImageRoute, wanted: Callable[[], bool]) -> Image:
        started = time.monotonic()
        staging = self._take_staging(work)
        staging.attend(wanted, partial(route.unpack, work.source.name))
        keep = False
        try:
            fetched = self._fetch(work, route, staging, wanted)
            if work.source.digest not in ("", fetched.digest or staging.digest):
                raise FailedPrecondition(
                    # The other digest would tell the content of what the caller may not read.
                    f"image {work.source.name}: its content is not {work.source.digest} as asked "
                    "for; check the digest, and that the server has this version"
                )
            image = self.store.publish(
                staging,
                work.reference,
                _hash(work.source),
                fetched.annotations,
                route.handler,
                partial(self._recognize, work, route, staging, wanted),
                fetched.digest,
            )
        except Unavailable:
            keep = bool(staging.size and staging.validator and not staging.complete)
            raise
        finally:
            self._put_staging(work, staging, keep)
        log.info(
            "image pulled",
            extra={
                "image": work.source.name,
                "id": image.id,
                "size": image.size,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
        return image

    def _fetch(
        self, work: _Work, route: ImageRoute, staging: StagingFile, wanted: Callable[[], bool]
    ) -> FetchedImage:
        """Fetch, and go on after a break of what has begun.

        What brings nothing will not get better at once, and the kubelet, which comes back by
        itself, lets other pods wait meanwhile.
        """
        tries = 0
        pauses = BackOff(self._retry.delay, self._retry.longest_delay)
        while True:
            tries += 1
            before = _progress(staging)
            try:
                fetched = self._fetch_once(work, route, staging, wanted)
                staging.finish(fetched.size)
                return fetched
            except Abandoned:
                # Unless somebody has joined just now: that one is to get an outcome.
                if not wanted():
                    raise staging.cancelled() from None
            except Unavailable as error:
                further = _progress(staging) > before
                if not further or tries >= self._retry.attempts or not wanted():
                    raise
                log.warning(
                    "image download broken, going on",
                    extra={
                        "image": work.source.name,
                        "size": staging.size,
                        "total": staging.total,
                        "problem": str(error),
                    },
                )
            _pause(pauses.pause(), wanted)

    def _fetch_once(
        self, work: _Work, route: ImageRoute, staging: StagingFile, wanted: Callable[[], bool]
    ) -> FetchedImage:
        lease = Lease(staging)
        try:
            fetch = partial(route.fetch, work.source, work.credentials, lease)
            return self._ask(work, fetch, _telling(staging, wanted))
        finally:
            lease.end()

    def _recognize(
        self,
        work: _Work,
        route: ImageRoute,
        staging: StagingFile,
        wanted: Callable[[], bool],
        name: str,
        file: Path,
    ) -> tuple[str, RecognizedImage]:
        try:
            return self._ask(work, lambda: route.recognize(name, file), wanted)
        except Abandoned:
            raise staging.cancelled() from None

    def _ask(self, work: _Work, call: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """Call plugins, on a thread that is left behind when nobody waits any more.

        Raises:
            Abandoned: it was left behind.
            ResourceExhausted: too many are left behind already.
        """
        with self._lock:
            left = len(self._left)
        if left >= self._most_left:
            raise ResourceExhausted(
                f"image {work.source.name}: {left} downloads that were cancelled have not ended; "
                "check the image servers and file systems that the manager's log names, and "
                "restart the manager if they do not end by themselves"
            )
        outcome = apart(call)
        try:
            return wait_for(outcome, wanted)
        except Abandoned:
            self._leave(outcome, work)
            raise

    def _leave(self, outcome: "Future[Any]", work: _Work) -> None:
        """Count a call that is left behind until it ends."""
        log.info("image plugin left behind", extra={"image": work.source.name})
        with self._lock:
            self._left.add(outcome)

        def ended(outcome: "Future[Any]") -> None:
            with self._lock:
                self._left.discard(outcome)

        outcome.add_done_callback(ended)

    def _take_staging(self, work: _Work) -> StagingFile:
        now = time.monotonic()
        with self._lock:
            stale = [
                key
                for key, staging in self._broken.items()
                if now - staging.touched > self._retry.keep_parts
            ]
            gone = [self._broken.pop(key) for key in stale if key != work]
            staging = self._broken.pop(work, None)
            if staging is None:
                known = self.store.known(work.reference, _hash(work.source))
                staging = self.store.new_staging(work.source.name, known)
            self._under_way[work] = staging
        for other in gone:
            other.discard()
        return staging

    def _put_staging(self, work: _Work, staging: StagingFile, keep: bool) -> None:
        with self._lock:
            del self._under_way[work]
            if keep:
                self._broken[work] = staging
        if not keep:
            staging.discard()


def _telling(staging: StagingFile, wanted: Callable[[], bool]) -> Callable[[], bool]:
    """As `wanted`; the log tells now and then how far the download is, as CRI has no way to."""
    told = time.monotonic()

    def asked() -> bool:
        nonlocal told
        if time.monotonic() - told >= TELL_AFTER:
            told = time.monotonic()
            extra = {"image": staging.name, "size": staging.size, "total": staging.total}
            log.info("image is being fetched", extra=extra)
        return wanted()

    return asked


def _pause(seconds: float, wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while wanted() and (left := end - time.monotonic()) > 0:
        time.sleep(min(0.1, left))


def _progress(staging: StagingFile) -> int:
    """Bytes that this download has brought so far; without what the store had."""
    return 0 if staging.complete else staging.size


def _hash(source: ImageSource) -> str:
    return hashlib.sha256(source.url.encode()).hexdigest()
