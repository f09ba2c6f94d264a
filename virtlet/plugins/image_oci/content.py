"""The content of a container image: one archive of all its layers, and a file system made of it.

Layers come the uppermost first, so what is written is what no layer above has or takes away, and a
disk that turns up takes the place of it all. Source: layer.md of OCI's image specification.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from virtlet.model.image import Conversion, Image, RecognizedImage, Staging, shown_name
from virtlet.plugins.image_oci.layers import BLOCK, Archive, Budget, Damaged, Entry, normal

FORMAT = "squashfs"
"""Of images that are file systems, which VMs mount and do not start from."""
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_OF_AUFS = ".wh..wh."
_START = tarfile.TarInfo.create_pax_global_header({"comment": "virtlet: layers of an image"})
"""What the archive begins with, and no other one."""
_MAKE = (
    *("sqfstar", "-force", "-quiet", "-no-progress", "-no-compression", "-no-xattrs"),
    *("-processors", "1", "-mem", "256M", "-mkfs-time", "0", "-root-time", "0"),
    *("-default-uid", "0", "-default-gid", "0", "-default-mode", "0755", "/proc/self/fd/1"),
)
"""Guests of any age know squashfs. Nothing is compressed, as what is large in images is already."""
_MAGIC = b"hsqs"
_SIZE = slice(40, 48)
_SECTOR = 512
_LONGEST_PATH = 4095
_LONGEST_NAME = 255
_DEEPEST = 128
_LARGEST_ID = (1 << 32) - 1


class Content:
    """Writes what the layers of an image have into its staging file, as one archive.

    What cannot be written is told at the end only: the image may have a disk yet.

    Args:
        staging: takes the archive.
        budget: of the image.
    """

    def __init__(self, staging: Staging, budget: Budget) -> None:
        self.lost: dict[str, list[Entry]] = {}
        """Hard links of the layer to files of it that a layer above hides, by the files' paths."""
        self._staging = staging
        self._budget = budget
        self._problem: Exception | None = None
        self._begun = False
        self._layer = 0
        self._known: dict[str, tuple[int, bool]] = {}
        """Path to (layer, whether it is a directory) of all that is written, with parents."""
        self._implied: set[str] = set()
        """Directories that are known as parents only."""
        self._left_out: set[str] = set()
        self._gone: set[str] = set()
        """What layers above take away."""
        self._emptied: set[str] = set()
        """Directories of which layers above take away what is in them."""
        self._taken: list[tuple[set[str], str]] = []
        self._hidden: set[str] = set()
        self._links: dict[str, str] = {}

    def begin_layer(self) -> None:
        """Go down to the next layer."""
        self._layer += 1
        self._hidden.clear()
        self._links.clear()
        self.lost.clear()

    def add(self, archive: Archive, entry: Entry) -> None:
        """Write an entry, if it counts."""
        try:
            if self._problem is None:
                self._add(archive, entry)
        except (Damaged, ResourceExhausted) as error:
            self._problem = error

    def end_layer(self) -> None:
        """Have what the layer takes away count for those below."""
        for kind, path in self._taken:
            kind.add(path)
        self._taken.clear()

    def find_lost(self, pieces: Iterator[bytes]) -> None:
        """Write the files that only hard links of the layer are left of.

        Args:
            pieces: of the same layer, once more.
        """
        archive = Archive(pieces, self._budget)
        archive.starts()
        for entry in archive.entries():
            links = self.lost.pop(entry.path, None) if entry.is_file else None
            if links is None or self._problem is not None:
                continue
            try:
                first, *others = links
                self._write(archive, entry, first.path)
                for link in others:
                    self._header(link, link.path, first.path)
            except (Damaged, ResourceExhausted) as error:
                self._problem = error

    def end(self) -> None:
        """End the archive.

        Raises:
            Damaged, ResourceExhausted: something could not be written.
        """
        if self._problem is not None:
            raise self._problem
        self._put(bytes(2 * BLOCK))

    def _add(self, archive: Archive, entry: Entry) -> None:
        path = entry.path
        parent, _, name = path.rpartition("/")
        if path == "/":
            return
        if name.startswith(_OF_AUFS):
            if name == OPAQUE:
                self._taken.append((self._emptied, parent or "/"))
            return
        if name.startswith(WHITEOUT):
            self._taken.append((self._gone, f"{parent}/{name.removeprefix(WHITEOUT)}"))
            return
        self._check(path)
        linked = normal(entry.link) if entry.type == tarfile.LNKTYPE else ""
        if linked:
            self._links[path] = linked = self._links.get(linked, linked)
        if self._is_hidden(entry):
            if entry.is_file:
                self._hidden.add(path)
            return
        if path in self._known and not entry.is_directory:
            raise Damaged(f"a layer of it has {path[:200]!r} twice")
        again = path in self._known and path not in self._implied
        self._note(path, entry.is_directory)
        if linked:
            self._link(entry, linked)
        elif entry.is_file:
            self._write(archive, entry, path)
        elif entry.is_directory and not again:
            self._header(entry, path)
        elif entry.type == tarfile.SYMTYPE:
            if not 0 < len(entry.link.encode("utf-8", "surrogateescape")) <= _LONGEST_PATH:
                raise Damaged(f"its link {path[:200]!r} leads nowhere")
            self._header(entry, path, entry.link)
        elif not entry.is_directory:
            self._left_out.add(path)  # A device: it means something on its own machine only.

    def _check(self, path: str) -> None:
        parts = path.encode("utf-8", "surrogateescape").split(b"/")
        longest = max(len(part) for part in parts)
        if len(path) > _LONGEST_PATH or longest > _LONGEST_NAME or len(parts) > _DEEPEST:
            raise Damaged(f"it has a path that is too long: {path[:80]!r}…")

    def _is_hidden(self, entry: Entry) -> bool:
        """Whether a layer above has something else in its place, or takes it away."""
        path = entry.path
        above = self._known.get(path, (self._layer, False))[0] < self._layer
        if above and not (entry.is_directory and path in self._implied):
            return True
        if path in self._gone:
            return True
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            known = self._known.get(path)
            if path in self._gone or path in self._emptied:
                return True
            if known is not None and known[0] < self._layer and not known[1]:
                return True
        return False

    def _note(self, path: str, directory: bool) -> None:
        self._known[path] = (self._layer, directory)
        self._implied.discard(path)
        while (path := path.rpartition("/")[0]) and path not in self._known:
            self._budget.entry()
            self._budget.extension(len(path))
            self._known[path] = (self._layer, True)
            self._implied.add(path)

    def _link(self, entry: Entry, target: str) -> None:
        if target in self._left_out:
            self._left_out.add(entry.path)
        elif target in self._hidden:
            self.lost.setdefault(target, []).append(entry)
        elif self._known.get(target) == (self._layer, False):
            self._header(entry, entry.path, target)
        else:
            raise Damaged(
                f"its {entry.path[:200]!r} is a hard link to {target[:200]!r}, which its layer "
                "does not have before it"
            )

    def _write(self, archive: Archive, entry: Entry, path: str) -> None:
        if entry.sparse:
            raise Damaged(f"its {path[:200]!r} is packed as a sparse file: pack it in full")
        self._header(entry, path)
        problem: Exception | None = None
        for part in archive.content(entry):
            self._budget.beside(len(part))
            try:
                if problem is None:
                    self._staging.write(part)
            except ResourceExhausted as error:
                problem = error  # The rest is read all the same: an entry follows it.
        if problem is not None:
            raise problem
        self._put(bytes(-entry.size % BLOCK))

    def _header(self, entry: Entry, path: str, link: str = "") -> None:
        info = tarfile.TarInfo(path.removeprefix("/"))
        # A hard link whose file is written in its place becomes one.
        info.type = tarfile.REGTYPE if entry.is_file else entry.type
        info.size = entry.size
        info.linkname = link if entry.type == tarfile.SYMTYPE else link.removeprefix("/")
        info.mode = entry.mode
        info.mtime = max(0, min(entry.mtime, _LARGEST_ID))
        info.uid, info.gid = entry.uid, entry.gid
        if not 0 <= info.uid <= _LARGEST_ID or not 0 <= info.gid <= _LARGEST_ID:
            raise Damaged(f"its {path[:200]!r} belongs to nobody that can be")
        self._put(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _put(self, content: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._staging.begin("", 0, None)
            self._staging.write(_START)
        self._staging.write(content)


def recognise(name: str, file: Path) -> RecognizedImage | None:
    """Say whether a file is the content of a container image, as an archive or a file system.

    Raises:
        InvalidArgument: it is a file system that is cut off.
    """
    with file.open("rb") as opened:
        head = opened.read(len(_START))
    if head == _START:
        made = Conversion(format="layers", argv=_MAKE, package="squashfs-tools")
        return RecognizedImage(format=FORMAT, conversion=made)
    if not head.startswith(_MAGIC):
        return None
    size = file.stat().st_size
    if size < int.from_bytes(head[_SIZE], "little") or size % _SECTOR:
        raise InvalidArgument(f"image {name}: it is a squashfs file system that is cut off")
    return RecognizedImage(format=FORMAT, virtual_size=size)


def refuse_to_start(image: Image, name: str) -> None:
    """Say what a container image lacks for a VM to start from it.

    Raises:
        FailedPrecondition: it is one.
    """
    if image.format == FORMAT:
        raise FailedPrecondition(
            f"image {shown_name(name)}: it is a container image without a disk: no layer has a "
            "file in /disk; put it into the image with `ADD disk.qcow2 /disk/`, or name an image "
            "made for virtual machines; as it is, a pod can mount it as a volume of kind `image`"
        )
