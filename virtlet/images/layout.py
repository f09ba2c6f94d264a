"""Where the store keeps what, what reads know of it, and what it takes of the disk.

data/<sha256>        the image, read-only
data/<sha256>.json   what is known of it
links/<reference>    symbolic link to the image; / in the reference is written %
part_*               a download, or a link on its way
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import field, frozen

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.files import make_private_directory, remove_file, write_atomically
from virtlet.host.mounts import at_or_below
from virtlet.images.staging import PART_PREFIX
from virtlet.model.image import Image
from virtlet.model.reference import DEFAULT_TAG, Reference, parse_reference

SUFFIX = ".json"
VERSION = 1

_HEX = re.compile(r"[0-9a-f]{64}")
_READ_ONLY = 0o444


@frozen
class ImageOrigin:
    """Where a name's content came from, to find out cheaply whether it is still the same."""

    source: str
    """Hash of the address; the address itself may hold credentials."""
    validator: str
    name: str = ""
    """The name as it was pulled, prefix and tag included, without a digest; "" where that was not
    written down yet: such a name stands for every tag."""
    handler: str = ""
    """The handler that it was pulled for."""
    digest: str = ""
    """See `FetchedImage.digest`."""
    annotations: Mapping[str, str] = field(factory=dict)
    """What is said of the image there; another place may say something else of the same bytes."""


@frozen
class ImageRecord:
    """What is known of a file in the store."""

    format: str
    size: int
    virtual_size: int
    pulled_at: int
    """Nanoseconds since the epoch."""
    origins: Mapping[str, ImageOrigin] = field(factory=dict)
    """By reference."""
    annotations: Mapping[str, str] = field(factory=dict)
    """What the fetching plugin reported last."""
    recognized_by: str = ""
    """The plugin that said what it is; "" where that was not written down yet."""
    fetched_size: int = 0
    """Bytes that were fetched, which may be packed; 0 where that was not written down yet."""
    source_format: str = ""
    """See `Image.source_format`."""


def write_record(path: Path, record: ImageRecord) -> None:
    """Store a record in one step."""
    document: dict[str, Any] = {"version": VERSION, **cattrs.unstructure(record)}
    write_atomically(path, json.dumps(document).encode(), mode=0o600)


def read_record(path: Path) -> ImageRecord | None:
    """Read a record; None when it is missing, damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("version") != VERSION:
            return None
        record = cattrs.structure(document, ImageRecord)
    except (OSError, ValueError, cattrs.BaseValidationError):
        return None
    return record if record.format else None


@frozen
class FilesystemUsage:
    """CRI's `FilesystemUsage`, for ImageFsInfo."""

    mountpoint: Path
    """A directory of the file system; the kubelet looks the device up itself."""
    used_bytes: int
    inodes_used: int
    timestamp: int
    """Nanoseconds since the epoch."""


def measure(directory: Path) -> FilesystemUsage:
    """Add up what is below a directory: allocated bytes, and inodes with the directories'.

    What is mounted there, as a pod's shared volumes are, belongs to somebody else.
    """
    used_bytes = 0
    inodes = 0
    top = os.path.realpath(directory)
    waiting = [top]
    mounted = set(map(os.fspath, at_or_below(Path(top))))
    while waiting:
        inodes += 1
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.path not in mounted:
                                waiting.append(entry.path)
                            continue
                        stat = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    inodes += 1
                    # st_blocks counts 512-byte units whatever the block size: stat(2).
                    used_bytes += stat.st_blocks * 512
        except FileNotFoundError:
            continue
    return FilesystemUsage(directory, used_bytes, inodes, time.time_ns())


class Layout:
    """The store's directory.

    Args:
        directory: the images directory; made with all below it.
        emulator_gid: group of programs that look into images.

    Raises:
        FailedPrecondition: the directory cannot be made.
    """

    def __init__(self, directory: Path, emulator_gid: int) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._links = directory / "links"
        self.emulator_gid = emulator_gid
        try:
            # A VM gets a name of its image elsewhere; nobody else has a way to it.
            for path in (directory, self._data, self._links):
                make_private_directory(path, mode=0o700)
        except OSError as error:
            raise FailedPrecondition(f"--image-dir {directory}: {error}") from None

    def data(self, digest: str) -> Path:
        """The file of an image."""
        return self._data / digest.removeprefix("sha256:")

    def record(self, digest: str) -> Path:
        """The file of what is known of an image."""
        return self.data(digest).with_suffix(SUFFIX)

    def new_part(self) -> Path:
        """A path for a new part; nothing is made."""
        return self.directory / f"{PART_PREFIX}{secrets.token_hex(8)}"

    def parts(self) -> Iterator[Path]:
        """All parts there are."""
        return self.directory.glob(f"{PART_PREFIX}*")

    def digests(self) -> Iterator[str]:
        """Digests of all files in the store, going by their names."""
        for path in self._data.iterdir():
            if _HEX.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                yield f"sha256:{path.name}"

    def stray_records(self) -> Iterator[Path]:
        """Records without a file, and half-written ones."""
        for path in self._data.iterdir():
            stem = path.name.removesuffix(".new").removesuffix(SUFFIX).lstrip(".")
            half_written = path.name.endswith(".new")
            ours = path.name != stem and _HEX.fullmatch(stem)
            if ours and (half_written or not (self._data / stem).exists()):
                yield path

    def links(self) -> Iterator[tuple[Reference, str]]:
        """References and the digests they lead to; links that are not ours are passed over."""
        for path in list(self._links.iterdir()):
            if path.is_symlink():
                target = path.readlink()
                try:
                    reference = parse_link(path.name)
                except InvalidArgument:
                    continue
                if target.parent.name == "data" and _HEX.fullmatch(target.name):
                    if path.name != link_name(reference):
                        # Written by a manager that took `x` and `x:latest` for two names.
                        path.rename(self._links / link_name(reference))
                    yield reference, f"sha256:{target.name}"

    def place(self, part: Path, digest: str) -> None:
        """Move a part, already on the disk, to the images, which nobody writes to."""
        self._protect(part)
        part.replace(self.data(digest))
        _sync(self._data)

    def protect(self, digest: str) -> os.stat_result:
        """Set the owner and mode of an image right; returns what is known of its file."""
        path = self.data(digest)
        stat = path.stat()
        if (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) != (*_owner(), _READ_ONLY):
            self._protect(path)
        return stat

    def link(self, reference: Reference, digest: str) -> None:
        """Make a reference lead to an image, in one step."""
        path = self.new_part()
        path.symlink_to(Path("..", "data", digest.removeprefix("sha256:")))
        try:
            path.replace(self._links / link_name(reference))
        except OSError:
            path.unlink()
            raise
        _sync(self._links)

    def unlink(self, reference: Reference) -> None:
        """Take a reference away; idempotent."""
        remove_file(self._links / link_name(reference))

    def remove(self, digest: str) -> None:
        """Take an image's file and record away; idempotent."""
        remove_file(self.data(digest))
        remove_file(self.record(digest))

    def _protect(self, path: Path) -> None:
        os.chown(path, *_owner())
        path.chmod(_READ_ONLY)


def _owner() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_name(reference: Reference) -> str:
    """File name of a reference's link in the store."""
    return str(reference).replace("/", "%")


def parse_link(link: str) -> Reference:
    """The reference that a link is named after.

    Raises:
        InvalidArgument: no reference has such a link.
    """
    reference = parse_reference(link.replace("%", "/"))
    if not reference.name:
        raise InvalidArgument(f"link {link!r} is named after no image")
    return reference


@frozen
class View:
    """What reads are answered from: one state of the store; a change makes a new one."""

    records: Mapping[str, ImageRecord]
    """By digest; also of files without a name, which wait for a VM to let go of them."""
    links: Mapping[Reference, str]
    """Reference to digest."""
    images: Mapping[str, Image] = field(factory=dict)
    """By digest; those with a name."""
    pinned: Mapping[Reference, str] = field(factory=dict)
    """`name@digest`, as its source or, without one, its file has it, to digest of the file."""

    def find(self, reference: Reference) -> Image | None:
        """The image that a reference means."""
        if not reference.name:
            return self.images.get(reference.digest)
        if not reference.digest:
            return self.images.get(self.links.get(reference, ""))
        return self.images.get(self.pinned.get(reference, ""))

    def find_any_tag(self, reference: Reference) -> Image | None:
        """As `find`; an image whose tag was not written down has any."""
        found = self.find(reference)
        if found is not None or not reference.name or reference.digest:
            return found
        untold = Reference(name=reference.name, tag=DEFAULT_TAG)
        origin = self.origin(untold)
        return self.find(untold) if origin is None or not origin.name else None

    def origin(self, reference: Reference) -> ImageOrigin | None:
        """Where what a name leads to came from."""
        record = self.records.get(self.links.get(reference, ""))
        return record.origins.get(str(reference)) if record else None

    def told(self, digest: str, reference: Reference) -> Mapping[str, str]:
        """What an image says of itself where it came from by a name; by an id, if it has one name.

        Args:
            digest: of an image that is there.
            reference: the name, which may lead elsewhere by now, or an id.
        """
        origins = self.records[digest].origins
        if not reference.name and len(origins) == 1:
            (origin,) = origins.values()
            return origin.annotations
        known = origins.get(str(reference))
        return known.annotations if known else {}

    def references(self, digest: str) -> list[Reference]:
        """All references that lead to an image."""
        return [reference for reference, target in self.links.items() if target == digest]


def make_view(
    layout: Layout, records: Mapping[str, ImageRecord], links: Mapping[Reference, str]
) -> View:
    """Draw the picture again."""
    names: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    known: dict[Reference, str] = {}
    for reference, digest in links.items():
        record = records.get(digest)
        origin = record.origins.get(str(reference)) if record else None
        pulled = origin.name if origin and origin.name else reference.tagged
        prefix = pulled.removesuffix(reference.tagged)
        # A name that was pulled by digest is known by that digest alone: it says nothing of
        # what the bare name leads to.
        told = (origin.digest if origin else "") or reference.digest or digest
        digests.setdefault(digest, set()).add(f"{prefix}{reference.name}@{told}")
        known[Reference(name=reference.name, digest=told)] = digest
        if not reference.digest:
            names.setdefault(digest, set()).add(pulled)
    images = {
        digest: Image(
            id=digest,
            path=layout.data(digest),
            format=record.format,
            size=record.size,
            virtual_size=record.virtual_size,
            names=tuple(sorted(names.get(digest, ()))),
            digests=tuple(sorted(digests[digest])),
            pulled_at=record.pulled_at,
            recognized_by=record.recognized_by,
            source_format=record.source_format,
        )
        for digest, record in records.items()
        if digest in digests
    }
    return View(dict(records), dict(links), images, known)
