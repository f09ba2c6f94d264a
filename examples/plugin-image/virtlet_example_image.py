"""Images from a directory of the node, among them root file systems in squashfs.

`local/NAME` is NAME.qcow2, NAME.img or NAME.squashfs there.
"""

import lzma
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet.api import (
    PATH,
    Credentials,
    FailedPrecondition,
    FetchedImage,
    ImageSource,
    InvalidArgument,
    Node,
    NotFound,
    Option,
    RecognizedImage,
    Reference,
    Settings,
    Staging,
    hookimpl,
)

IMAGE_DIR = Option(
    field="exampleImageDir",
    flag="--example-image-dir",
    env="VIRTLET_EXAMPLE_IMAGE_DIR",
    kind=PATH,
    default="{data_dir}/local-images",
    help="where the example plugin finds the images of names that start with local/",
)

SCHEME = "local-directory:"
SUFFIXES = (".qcow2", ".qcow2.xz", ".img", ".img.xz", ".squashfs")
CHUNK = 1 << 20

# The superblock of squashfs 4: the magic, then at byte 28 the version, at byte 40 the bytes used.
# https://dr-emann.github.io/squashfs/
SUPERBLOCK = struct.Struct("<4s24xHH8xQ")
MAGIC = b"hsqs"

# A NAME is one word, so that it stays below the directory.
NAME = re.compile(r"local/(?P<name>[a-z0-9][a-z0-9._-]*)")


class Plugin:
    """Resolves and fetches names that start with `local/`."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """The directory's place."""
        return [IMAGE_DIR]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the directory's place."""
        self._directory: Path = settings[IMAGE_DIR]

    @hookimpl
    def virtlet_resolve_image(self, reference: Reference) -> ImageSource | None:
        """Give our names an address of our own; the file need not be there yet."""
        match = NAME.fullmatch(reference.name)
        if match is None:
            return None
        url = f"{SCHEME}{match['name']}"
        return ImageSource(name=reference.name, url=url, digest=reference.digest)

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Copy the file, unpacked where it is packed."""
        if not source.url.startswith(SCHEME):
            return None
        path = self._find(source)
        stat = path.stat()
        version = f"{path.name}-{stat.st_ino}-{stat.st_mtime_ns}"
        if staging.complete and staging.validator == version:
            return FetchedImage(size=staging.size)
        packed = path.suffix == ".xz"
        staging.begin(version, 0, None if packed else stat.st_size)
        try:
            with lzma.open(path) if packed else path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    staging.write(chunk)
        except (lzma.LZMAError, EOFError):
            raise FailedPrecondition(f"image {source.name}: {path} is no whole xz file") from None
        return FetchedImage(size=staging.size, annotations={"file": path.name})

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        """Take squashfs images, for a disk plugin and a hypervisor that start from one."""
        with file.open("rb") as content:
            head = content.read(SUPERBLOCK.size)
        if not head.startswith(MAGIC):
            return None
        if len(head) < SUPERBLOCK.size:
            raise InvalidArgument(f"image {name}: it ends within its superblock; was it cut off?")
        _, major, _, used = SUPERBLOCK.unpack(head)
        if major != 4:
            raise InvalidArgument(
                f"image {name}: it is squashfs {major}; make it with mksquashfs 4"
            )
        if used > file.stat().st_size:
            raise InvalidArgument(f"image {name}: it is shorter than it says; was it cut off?")
        return RecognizedImage(format="squashfs", virtual_size=file.stat().st_size)

    def _find(self, source: ImageSource) -> Path:
        name = source.url.removeprefix(SCHEME)
        for suffix in SUFFIXES:
            path = self._directory / f"{name}{suffix}"
            if path.is_file():
                return path
        raise NotFound(
            f"image {source.name}: {self._directory} has no {name}.qcow2, .img or .squashfs"
        )
