"""Layers of images: unpacked as they come and read as archives, with little memory.

Every size in an archive is the publisher's word. So nothing is read whole but headers of a bounded
size, which tarfile's own reader does not promise. Source: POSIX, "pax Interchange Format", and
"Basic Tar Format" in GNU tar's manual; layer.md of OCI's image specification.
"""

import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import IO, cast

from attrs import frozen

from virtlet.errors import FailedPrecondition, ResourceExhausted

PIECE = 1 << 20
"""Bytes of the largest piece of unpacked content."""
BLOCK = tarfile.BLOCKSIZE
MOST_ENTRIES = 500_000
"""Entries of all layers of an image; container images of whole distributions have some 50,000."""
MOST_BESIDE = 32 << 30
"""Unpacked bytes of all layers of an image beside its disk."""
MOST_EXTENSIONS = 128 << 20
"""Bytes of all headers of an image's layers that extend others, such as long names."""
_LONGEST_HEADER = 256 << 10
"""Bytes of one of them; most of it may be an extended attribute."""
_LARGEST_WINDOW = 1 << 25
"""Bytes that zstd may look back; what makes images asks for 8 MiB at most."""
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_EXTENDING = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_TOLD = ("path", "size", "linkpath", "uid", "gid")
"""Records of an extended header that count here."""
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_WITHOUT_CONTENT = (*_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class Damaged(FailedPrecondition):
    """A layer is no whole archive, or is not packed as it says; the text is a clause."""


class TooMuch(ResourceExhausted):
    """Layers cost more than an image may; the text is a clause."""


@frozen
class Entry:
    """An entry of an archive."""

    path: str
    """Absolute and normalised."""
    type: bytes
    """One of tarfile's."""
    size: int
    """Bytes of its content."""
    sparse: bool = False
    """Whether its content leaves out holes."""
    link: str = ""
    """What a link leads to, as the archive has it."""
    mode: int = 0
    """Permissions, with the bits for set-user-id and the like."""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    """Seconds since the epoch."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic or hard link."""
        return self.type in _LINKS

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.type == tarfile.DIRTYPE


def unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Content without its compression, which its first bytes tell, as in containerd.

    Returns:
        Pieces of at most `PIECE` bytes, or the chunks themselves.

    Raises:
        Damaged: it cannot be unpacked, or ends too early.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_ZSTD):
            break
    whole = chain((head,), chunks)
    if head.startswith(_GZIP):
        return _gunzip(whole)
    if head.startswith(_ZSTD):
        return _unpack_zstd(whole)
    return whole


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Also of several members, one after the other."""
    stream, fresh = zlib.decompressobj(wbits=31), True
    try:
        # The last, empty one brings out what is left in the library's window.
        for chunk in chain(chunks, (b"",)):
            while True:
                piece = stream.decompress(chunk, PIECE)
                fresh = fresh and not chunk
                chunk = stream.unconsumed_tail
                if piece:
                    yield piece
                if stream.eof:
                    chunk = stream.unused_data
                    stream, fresh = zlib.decompressobj(wbits=31), True
                if not chunk and not piece:
                    break
    except zlib.error:
        raise Damaged("its gzip compression is damaged") from None
    if not fresh:
        raise Damaged("its gzip compression ends too early")


def _unpack_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # With the first layer of that kind.

    unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    try:
        with unpacker.stream_reader(
            cast("IO[bytes]", _File(chunks)), read_across_frames=True
        ) as reader:
            while piece := reader.read(PIECE):
                yield piece
    except zstandard.ZstdError:
        raise Damaged("its zstd compression is damaged, or takes too much memory") from None


class _File:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        part, self._rest = self._rest[:size], self._rest[size:]
        return bytes(part)


class Budget:
    """What all layers of an image may cost."""

    def __init__(self) -> None:
        self._entries = MOST_ENTRIES
        self._bytes = MOST_BESIDE
        self._extensions = MOST_EXTENSIONS

    def entry(self) -> None:
        """Count an entry."""
        self._entries -= 1
        if self._entries < 0:
            raise TooMuch(f"its layers have more than {MOST_ENTRIES} entries")

    def extension(self, size: int) -> None:
        """Count bytes of a header that extends another."""
        self._extensions -= size
        if self._extensions < 0:
            raise TooMuch(f"its layers have more than {MOST_EXTENSIONS >> 20} MiB of headers")

    def beside(self, size: int) -> None:
        """Count unpacked bytes that are not the disk's."""
        self._bytes -= size
        if self._bytes < 0:
            raise TooMuch(f"its layers unpack to more than {MOST_BESIDE >> 30} GiB beside a disk")


class Archive:
    """A tar archive that is read from its start to its end.

    Args:
        pieces: its bytes.
        budget: of its image.
    """

    def __init__(self, pieces: Iterator[bytes], budget: Budget) -> None:
        self._pieces = pieces
        self._budget = budget
        self._rest = memoryview(b"")
        self._left = 0
        """Bytes up to the next header that nobody has taken yet."""

    def starts(self) -> bool:
        """Whether it starts like an archive; nothing is taken."""
        head = b""
        for piece in self._pieces:
            head += piece
            if len(head) >= BLOCK:
                break
        self._rest = memoryview(head)
        if len(head) < BLOCK:
            return not head
        if not any(head[:BLOCK]):
            return False
        try:
            _parse(head[:BLOCK])
        except Damaged:
            return False
        return True

    @property
    def is_blank(self) -> bool:
        """Whether it has an end and nothing before that, once it was asked whether it starts."""
        return len(self._rest) >= BLOCK and not any(self._rest[:BLOCK])

    def all(self) -> Iterator[bytes]:
        """The bytes that nobody has taken, as they are."""
        if self._rest:
            rest, self._rest = self._rest, memoryview(b"")
            yield bytes(rest)
        yield from self._pieces

    def entries(self) -> Iterator[Entry]:
        """All entries; what of an entry's content was not taken is passed over.

        Raises:
            Damaged: it is malformed, or ends too early.
            TooMuch: it is more than an image may have.
        """
        told: dict[str, str] = {}
        while (block := self._header()) is not None:
            info = _parse(block)
            self._budget.entry()
            if info.type in _EXTENDING or info.type in _LONG:
                content = self._extension(info)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    told["path"] = _text(content.rstrip(b"\0"))
                elif info.type == tarfile.GNUTYPE_LONGLINK:
                    told["linkpath"] = _text(content.rstrip(b"\0"))
                elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                    told |= _records(content)
                continue
            size = _number(told["size"]) if "size" in told else info.size
            sparse = info.type == tarfile.GNUTYPE_SPARSE
            if sparse:
                self._pass_map(block)
            if info.type in _WITHOUT_CONTENT:
                size = 0
            entry = Entry(
                path=normal(told.get("path", info.name)),
                type=tarfile.REGTYPE if sparse else info.type,
                size=size,
                sparse=sparse or any(key.startswith("GNU.sparse.") for key in told),
                link=told.get("linkpath", info.linkname),
                mode=info.mode & 0o7777,
                uid=_number(told["uid"]) if "uid" in told else info.uid,
                gid=_number(told["gid"]) if "gid" in told else info.gid,
                mtime=int(info.mtime),
            )
            told = {}
            self._left = size + -size % BLOCK
            yield entry
            self._pass()
        # What follows the end belongs to the layer, whose digest is of all of it.
        for piece in self.all():
            self._budget.beside(len(piece))

    def content(self, entry: Entry) -> Iterator[bytes]:
        """The content of the entry that was given last."""
        self._left -= entry.size
        for part in self._take(entry.size):
            yield bytes(part)

    def _header(self) -> bytes | None:
        """The next header; None at the end, which a block of zeros marks."""
        self._fill()
        if not self._rest:
            return None
        block = b"".join(self._take(BLOCK))
        return block if any(block) else None

    def _extension(self, info: tarfile.TarInfo) -> bytes:
        if info.size > _LONGEST_HEADER:
            raise Damaged("its archive has a header that is too long")
        self._budget.extension(info.size)
        content = b"".join(self._take(info.size))
        self._left = -info.size % BLOCK
        self._pass()
        return content

    def _pass_map(self, block: bytes) -> None:
        """Pass over the rest of a sparse file's map of holes."""
        more = block[482]
        while more:
            self._budget.beside(BLOCK)
            more = b"".join(self._take(BLOCK))[504]

    def _pass(self) -> None:
        left, self._left = self._left, 0
        for part in self._take(left):
            self._budget.beside(len(part))

    def _take(self, size: int) -> Iterator[memoryview]:
        while size:
            self._fill()
            if not self._rest:
                raise Damaged("its archive ends too early")
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            yield part

    def _fill(self) -> None:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._rest = memoryview(piece)


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise Damaged("its archive has a header that is none") from None
    if info.size < 0:
        raise Damaged("its archive has an entry of a negative size")
    return info


def _records(content: bytes) -> dict[str, str]:
    """What a header of POSIX's says of the next entry, as far as it counts here."""
    found = {}
    start = 0
    while start < len(content):
        digits = content[start : start + 20].partition(b" ")[0]
        end = start + _number(_text(digits))
        if not start + len(digits) + 1 < end <= len(content):
            raise Damaged("its archive has an extended header that is none")
        key, _, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
        name = _text(key)
        if name in _TOLD or name.startswith("GNU.sparse."):
            found[name] = _text(value)
        start = end
    return found


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Damaged("its archive has a number that is none")
    return int(text)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def normal(path: str) -> str:
    """A path as a container would have it.

    Nothing is ever written to a path of an archive: it is only compared, and written down.

    Raises:
        Damaged: it has `..` in it.
    """
    if ".." in path.split("/"):
        raise Damaged("its archive has an entry with .. in its path")
    return posixpath.normpath("/" + path.lstrip("/"))
