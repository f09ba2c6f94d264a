"""The image store: files by their SHA-256, names that lead to them."""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from attrs import evolve

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VirtletError,
)
from virtlet.host.files import remove_file
from virtlet.images.layout import (
    FilesystemUsage,
    ImageOrigin,
    ImageRecord,
    Layout,
    View,
    make_view,
    measure,
    read_record,
    write_record,
)
from virtlet.images.singleflight import Abandoned, apart, wait_for
from virtlet.images.staging import ImageLimits, KnownImage, StagingFile
from virtlet.model.image import IMAGE_PREFIX, OWN_ANNOTATIONS, Image, RecognizedImage
from virtlet.model.reference import Reference, parse_reference

log = logging.getLogger(__name__)

_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{1,63})")
"""An id that the client cut short."""

_VERSION = re.compile(r"(:[^:/]*|@.*)$")
"""A tag or digest."""

Recognize = Callable[[str, Path], tuple[str, RecognizedImage]]
"""Says which plugin knows what an image is, and what, given the image's name and file."""

LOOK_PATIENCE = 300.0
"""Seconds that a start waits for plugins to recognise a file whose record was lost."""


class ImageStore:
    """Keeps images; reads never wait for a writer.

    A file without a name is garbage and goes as soon as no VM uses it.

    Args:
        layout: the directory that it keeps them in; nobody else may work on it.
        in_use: ids (`sha256:…`) of the images that VMs use; it must not call back into the store.
        recognize: says what a file is whose record was lost, or where a pull has no way of its own.
        look_patience: seconds that a start waits for it.
        limits: bounds for one image.
        pinned: globs of the names, with or without prefix and tag, of images that stay although
            nothing uses them.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        in_use: Callable[[], Collection[str]],
        recognize: Recognize,
        look_patience: float = LOOK_PATIENCE,
        limits: ImageLimits | None = None,
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.limits = limits or ImageLimits()
        self._in_use = in_use
        self._pinned = pinned
        self._recognize = recognize
        self._look_patience = look_patience
        self._layout = layout
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._view = self._load()

    # Reading

    def list(self) -> tuple[Image, ...]:
        """All images that have a name, the oldest first."""
        images = self._view.images.values()
        return tuple(sorted(images, key=lambda image: (image.pulled_at, image.id)))

    def get(self, reference: Reference) -> Image | None:
        """The image of a name, a `name@sha256:…`, or a whole id.

        A name is the one that was pulled; without a tag it has the tag `latest`.
        """
        return self._view.find_any_tag(reference)

    def handler(self, reference: Reference) -> str | None:
        """The handler that a name, or an image by one of its names, was pulled for; None where
        that is not known."""
        view = self._view
        names = [reference] if reference.name else view.references(reference.digest)
        origins = [o for name in names if (o := view.origin(name)) and o.name]
        return origins[0].handler if origins else None

    def find(self, reference: Reference) -> Image | None:
        """As `get`, also by the beginning of an id; a name comes first, as in containerd.

        Raises:
            FailedPrecondition: it is the beginning of several images' ids.
        """
        return self.get(reference) or self._beginning(reference)

    def _beginning(self, reference: Reference) -> Image | None:
        match = _BEGINNING.fullmatch(reference.text)
        if match is None:
            return None
        start = f"sha256:{match[1]}"
        found = [image for image in self._view.images.values() if image.id.startswith(start)]
        if len(found) > 1:
            ids = ", ".join(sorted(image.id for image in found)[:3])
            raise FailedPrecondition(
                f"image {reference.shown} is the beginning of {len(found)} images' ids: {ids}"
                f"{', …' if len(found) > 3 else ''}; give more of it"
            )
        return found[0] if found else None

    def known(self, reference: Reference, source: str) -> KnownImage | None:
        """What the store has of a source, where that can be compared with it.

        Args:
            reference: what it is to be published under; another that was published from the same
                source will do where this one was not.
            source: hash of its address.
        """
        view, named = self._view, str(reference)
        found = [
            (
                (name == named, record.pulled_at),
                KnownImage(digest, record.fetched_size or record.size, origin.validator),
            )
            for digest, record in view.records.items()
            if digest in view.images
            for name, origin in record.origins.items()
            if origin.source == source and origin.validator
        ]
        return max(found, key=lambda item: item[0])[1] if found else None

    def annotations(self, digest: str) -> Mapping[str, str]:
        """What the plugin that fetched an image reported."""
        record = self._view.records.get(digest)
        return record.annotations if record else {}

    def pin(self, globs: tuple[str, ...]) -> None:
        """Pin other images from now on; see the constructor's `pinned`."""
        self._pinned = globs

    def pinned(self, image: Image) -> bool:
        """Whether the kubelet's garbage collection has to leave an image alone."""
        called = {name.removeprefix(IMAGE_PREFIX) for name in (*image.names, *image.digests)}
        called |= {re.sub(_VERSION, "", name) for name in called}
        globs = [glob.removeprefix(IMAGE_PREFIX) for glob in self._pinned]
        return any(fnmatchcase(name, glob) for name in called for glob in globs)

    def usage(self) -> FilesystemUsage:
        """What the images, parts included, take."""
        return measure(self._layout.directory)

    # Writing

    def new_staging(self, name: str, known: KnownImage | None = None) -> StagingFile:
        """A staging file for a download."""
        return StagingFile(self._layout.new_part(), name, self.limits, known)

    def publish(
        self,
        staging: StagingFile,
        reference: Reference,
        source: str = "",
        annotations: Mapping[str, str] | None = None,
        handler: str = "",
        recognize: Recognize | None = None,
        source_digest: str = "",
    ) -> Image:
        """Take a finished staging file into the store, under a name, in one step.

        Args:
            staging: finished; it is used up.
            reference: its name, or its name with the digest that the content has.
            source: hash of the address it came from.
            annotations: what the fetching plugin reports.
            handler: the handler that it was pulled for.
            recognize: says what it is, where the store does not have that content yet.
            source_digest: see `FetchedImage.digest`.

        Raises:
            InvalidArgument, ResourceExhausted: a VM cannot start from it.
            Unavailable: that could not be found out; the staging file is not used up.
            FailedPrecondition: the content has another digest than the reference says.
            VirtletError: the disk is full, or fails; nothing is published.
        """
        digest = staging.digest
        if reference.digest and reference.digest != (source_digest or digest):
            raise FailedPrecondition(
                f"image {reference.shown}: its content is not {reference.digest} as asked for"
            )
        record = self._view.records.get(digest)
        if record is None and not staging.complete:
            record = self._look(staging.path, staging.name, recognize or self._recognize, staging)
        prefix = IMAGE_PREFIX if reference.text.startswith(IMAGE_PREFIX) else ""
        name = f"{prefix}{reference.tagged}"
        told = annotations or {}
        own = {name: text for name, text in told.items() if name.startswith(OWN_ANNOTATIONS)}
        with self._lock:
            view = self._view
            if record is None or (staging.complete and digest not in view.records):
                raise Unavailable(
                    f"image {reference.shown}: removed while it was pulled; pull again"
                )
            origins = dict(view.records[digest].origins if digest in view.records else {})
            for known in origins.values() if staging.complete else ():
                # Nothing was read again, so it says what it said.
                if (known.source, known.validator) == (source, staging.validator):
                    own = {**known.annotations, **own}
            origins[str(reference)] = ImageOrigin(
                source, staging.validator, name, handler, source_digest, own
            )
            record = evolve(
                record,
                pulled_at=time.time_ns(),
                origins=origins,
                annotations=annotations or record.annotations,
            )
            new = digest not in view.records
            try:
                write_record(self._layout.record(digest), record)
                if new:
                    self._layout.place(staging.path, digest)
                self._layout.link(reference, digest)
            except OSError as error:
                if new:
                    self._layout.remove(digest)
                raise staging.not_stored(error) from None
            if new:
                staging.release()
            else:
                staging.discard()
            links = {**view.links, reference: digest}
            self._view = make_view(self._layout, {**view.records, digest: record}, links)
            self._sweep()
            return self._view.images[digest]

    def remove(self, reference: Reference) -> bool:
        """Take all names from an image; its file goes too, once no VM uses it.

        Returns:
            Whether there was such an image.
        """
        with self._lock:
            view = self._view
            image = view.find(reference)
            if image is None:
                return False
            gone = view.references(image.id)
            links = {name: digest for name, digest in view.links.items() if name not in gone}
            for name in gone:
                self._layout.unlink(name)
            self._view = make_view(self._layout, view.records, links)
            self._sweep()
        return True

    @contextmanager
    def held(self, reference: Reference, called: str = "") -> Iterator[Image]:
        """Keep an image's file from going, until what uses it is on record.

        Args:
            reference: as for `find`.
            called: the name that the pod has for it, where `reference` is another one; what the
                image says of itself is taken from where that name leads.

        Raises:
            NotFound: there is no such image.
            FailedPrecondition: it is the beginning of several images' ids.
        """
        with self._lock:
            image = self.find(reference)
            if image is None:
                raise NotFound(f"image {reference.shown!r} is not in the store: pull it first")
            with suppress(InvalidArgument):
                reference = parse_reference(called) if called else reference
            image = evolve(image, annotations=self._view.told(image.id, reference))
            self._held[image.id] = self._held.get(image.id, 0) + 1
        try:
            yield image
        finally:
            with self._lock:
                self._held[image.id] -= 1
                if not self._held[image.id]:
                    del self._held[image.id]

    # Cleaning

    def collect(self) -> None:
        """Clean up after an earlier life: parts, dangling links, files that nobody needs.

        To be called before the first pull.
        """
        with self._lock:
            for part in self._layout.parts():
                remove_file(part)
            for stray in list(self._layout.stray_records()):
                remove_file(stray)
            self._sweep(also=set(self._layout.digests()) - self._view.records.keys())
            for name, digest in list(self._layout.links()):
                if digest not in self._view.records:
                    self._layout.unlink(name)

    def sweep(self) -> None:
        """Remove files without a name that no VM uses any more; call it when a VM is gone."""
        with self._lock:
            self._sweep()

    def _sweep(self, also: Collection[str] = ()) -> None:
        view = self._view
        nameless = (view.records.keys() - view.images.keys()) | set(also)
        if not nameless:
            return
        # Asked for under the lock: a holder lets go only after its VM is on record.
        unused = nameless - self._held.keys() - set(self._in_use())
        if not unused:
            return
        for digest in unused:
            self._layout.remove(digest)
            log.info("image removed", extra={"image": digest})
        records = {digest: r for digest, r in view.records.items() if digest not in unused}
        self._view = make_view(self._layout, records, view.links)

    # Starting

    def _load(self) -> View:
        records: dict[str, ImageRecord] = {}
        for digest in self._layout.digests():
            record = self._load_record(digest)
            if record is not None:
                records[digest] = record
        links = {name: digest for name, digest in self._layout.links() if digest in records}
        return make_view(self._layout, records, links)

    def _load_record(self, digest: str) -> ImageRecord | None:
        path = self._layout.data(digest)
        stat = self._layout.protect(digest)
        record = read_record(self._layout.record(digest))
        if record is not None and record.size == stat.st_size:
            return record
        look = apart(lambda: self._look(path, digest, self._recognize))
        deadline = time.monotonic() + self._look_patience
        try:
            made = wait_for(look, lambda: time.monotonic() < deadline)
        except (VirtletError, Abandoned) as error:
            problem = str(error) or f"nobody has said what it is within {self._look_patience:g} s"
            log.error("image left out", extra={"image": digest, "problem": problem})
            return None
        made = evolve(made, pulled_at=stat.st_mtime_ns)
        write_record(self._layout.record(digest), made)
        return made

    def _look(
        self, path: Path, name: str, recognize: Recognize, staging: StagingFile | None = None
    ) -> ImageRecord:
        """What is known of a file by its content; a staging file is converted if it has to be."""
        plugin, found = recognize(name, path)
        self._check_disk(name, found)
        if found.conversion is not None and staging is not None:
            staging.convert(found.conversion, self._layout.emulator_gid)
            plugin, found = recognize(name, path)
            self._check_disk(name, found)
        if found.conversion is not None:
            raise InvalidArgument(f"image {name}: no VM starts from {found.format} as it is")
        return ImageRecord(
            format=found.format,
            size=path.stat().st_size,
            virtual_size=found.virtual_size,
            pulled_at=0,
            recognized_by=plugin,
            fetched_size=staging.size if staging else 0,
            source_format=staging.source_format if staging else "",
        )

    def _check_disk(self, name: str, found: RecognizedImage) -> None:
        if found.virtual_size > self.limits.virtual_size:
            raise ResourceExhausted(
                f"image {name}: its disk of {found.virtual_size} bytes is over the limit of "
                f"{self.limits.virtual_size} bytes"
            )
