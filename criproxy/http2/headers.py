"""Header lists: which may pass to another connection, and how they are packed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hpack import HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import Decoder, Encoder

from criproxy.http2.frames import MAX_UNPACKED, ConnectionFault, ErrorCode, Refusal

Header = tuple[bytes, bytes]

#: Larger lists end their call; gRPC's own default is 8 to 16 KiB.
MAX_HEADER_LIST = 64 * 1024
#: What an entry counts beside its texts (RFC 7541, section 4.1).
_ENTRY_OVERHEAD = 32

_NAME = re.compile(rb":?[a-z0-9_.\-]+")
_FORBIDDEN_IN_VALUES = re.compile(rb"[\x00\r\n]")
_OF_ONE_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
#: Number of cached blocks, and the length of the longest in bytes.
_MOST_KNOWN, _SHORT_BLOCK = 64, 64
_MALFORMED = Refusal(ErrorCode.PROTOCOL_ERROR, "malformed headers")
#: Headers that differ from call to call: in the table they would evict other headers.
_CHANGING = frozenset((b"grpc-timeout", b"grpc-message", b"traceparent", b"content-length"))


class HeaderCodec:
    """The two HPACK states of one connection.

    Nearly all headers are in the tables already and take one byte on the wire. These are looked up
    here, in a fraction of the library's time; the library packs and unpacks all others.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_UNPACKED)
        self._encoder = Encoder()
        self._indexed: dict[Header, bytes] = {}
        self._checked: set[Header] = set()
        #: Decoded blocks that only refer to the table; valid until the table changes.
        self._known: dict[bytes, tuple[Sequence[Header], Refusal | None]] = {}
        self._resizing: tuple[int, int] | None = None

    def peer_table_size(self, size: int) -> None:
        """Use the table size that the peer allows, at most 4 KiB."""
        size = min(size, 4096)
        least = size if self._resizing is None else min(size, self._resizing[0])
        self._resizing = least, size

    def decode(self, block: bytes) -> tuple[list[Header], Refusal | None]:
        """Unpack a header block, and return why its list must not be passed on, or None.

        Raises:
            ConnectionFault: if it does not decode; the shared state is lost then.
        """
        headers, refusal = self._known.get(block) or self._unpack(block)
        return [*headers], refusal

    def _unpack(self, block: bytes) -> tuple[Sequence[Header], Refusal | None]:
        headers: list[Header] = []
        indexed = True
        table = self._decoder.header_table
        size = 0
        try:
            for position, byte in enumerate(block):
                if 0x80 < byte < 0xFF:
                    header = table.get_by_index(byte & 0x7F)
                    headers.append(header)
                    size += len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
                    if size > MAX_UNPACKED:
                        raise OversizedHeaderListError
                else:
                    # This may change the table.
                    indexed = False
                    self._known.clear()
                    if position and byte & 0xE0 == 0x20:
                        raise ValueError("a table size within the block")
                    for header in self._decoder.decode(block[position:], raw=True):
                        headers.append(header)
                        size += len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
                    break
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too long") from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(
                ErrorCode.COMPRESSION_ERROR, f"undecodable header block: {error}"
            ) from error
        refusal = self._refusal(headers, size)
        if indexed and len(block) <= _SHORT_BLOCK and len(self._known) < _MOST_KNOWN:
            self._known[block] = headers, refusal
        return headers, refusal

    def encode(self, headers: Iterable[Header]) -> bytes:
        """Pack a header list; must be called in the order in which blocks are sent."""
        resized = None if self._resizing is None else self._resize(self._resizing)
        block = b"".join([self._indexed.get(h) or self._encode(h) for h in headers])
        return block if resized is None else resized + block

    def _resize(self, sizes: tuple[int, int]) -> bytes:
        """Resize the table; return what announces it to the peer at the start of a block.

        Args:
            sizes: the smallest size since the last block, down to which the peer has evicted
                entries, and the last one.
        """
        self._resizing = None
        self._indexed.clear()
        # The library announces nothing when the same size is set again.
        for size in dict.fromkeys(sizes):
            self._encoder.header_table_size = size
        return self._encoder.encode(())

    def _encode(self, header: Header) -> bytes:
        name, value = header
        if name in _CHANGING:
            if len(value) < 0x7F:
                # Literal, never indexed, with a new name (RFC 7541, section 6.2.3).
                return b"\x10%c%b%c%b" % (len(name), name, len(value), value)
            header = NeverIndexedHeaderTuple(name, value)
        packed = self._encoder.encode((header,), huffman=False)
        if packed[0] & 0x80:
            self._indexed[header] = packed
        elif packed[0] & 0x60:
            # A new entry, or another table size, renumbers the entries.
            self._indexed.clear()
        return packed

    def _refusal(self, headers: Iterable[Header], size: int) -> Refusal | None:
        """Return why a list must not be passed on, or None.

        The next peer would end its connection because of a bad header, and all clients share that
        connection.
        """
        if size > MAX_HEADER_LIST:
            return Refusal(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"headers or trailers of {size} bytes; at most {MAX_HEADER_LIST} can pass here",
            )
        checked = self._checked
        for header in headers:
            if header in checked:
                continue
            name, value = header
            if not _NAME.fullmatch(name) or name in _OF_ONE_CONNECTION:
                return _MALFORMED
            if _FORBIDDEN_IN_VALUES.search(value):
                return _MALFORMED
            if len(checked) < 200 and name not in _CHANGING:
                checked.add(header)
        return None


def first(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The value of the first header called `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
