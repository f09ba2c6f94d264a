"""SPDY header blocks: names and values, zlib-compressed with one history per direction.

Source: SPDY protocol draft 3.1, sections 2.6.10 and 2.6.10.1.
"""

import struct
import zlib
from collections.abc import Mapping
from importlib.resources import files

from virtlet.core.streaming.errors import ProtocolError

_DICTIONARY = files("virtlet.core.streaming.spdy").joinpath("dictionary.bin").read_bytes()
_COUNT = struct.Struct(">I")

MAX_HEADER_BYTES = 64 * 1024
"""Of one block, unpacked. Ours hold three short headers."""


class HeaderPacker:
    """Packs the blocks of one direction, in the order in which they are sent."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=_DICTIONARY)

    def pack(self, headers: Mapping[str, str]) -> bytes:
        """Return the block; names go out in lower case, as the protocol wants them."""
        parts = [_COUNT.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower(), value):
                octets = text.encode("latin-1")
                parts += (_COUNT.pack(len(octets)), octets)
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderUnpacker:
    """Unpacks the blocks of one direction, in the order in which they were sent."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=_DICTIONARY)

    def unpack(self, block: bytes) -> dict[str, str]:
        """Return the headers, names in lower case.

        Raises:
            ProtocolError: the block is broken or too long. The history is lost then, and with it
                the connection.
        """
        try:
            raw = self._zlib.decompress(block, MAX_HEADER_BYTES + 1)
        except zlib.error as error:
            raise ProtocolError(f"a header block does not unpack: {error}") from None
        if len(raw) > MAX_HEADER_BYTES or self._zlib.unconsumed_tail:
            raise ProtocolError(f"a header block is longer than {MAX_HEADER_BYTES} bytes")
        return _parse(raw)


def _parse(raw: bytes) -> dict[str, str]:
    texts = []
    try:
        (count,) = _COUNT.unpack_from(raw)
        at = _COUNT.size
        # Each header takes two lengths at least, so a huge count ends with the bytes.
        for _ in range(2 * count):
            (length,) = _COUNT.unpack_from(raw, at)
            at += _COUNT.size + length
            if at > len(raw):
                raise ProtocolError("a header block ends within a header")
            texts.append(raw[at - length : at].decode("latin-1"))
    except struct.error:
        raise ProtocolError("a header block ends within a header") from None
    if at != len(raw):
        raise ProtocolError("a header block holds more than its headers")
    names = [name.lower() for name in texts[::2]]
    if len(set(names)) != len(names) or "" in names:
        raise ProtocolError("a header block names a header twice, or one without a name")
    return dict(zip(names, texts[1::2], strict=True))
