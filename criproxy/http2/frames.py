"""Frames and header lists of a connection, and the faults of peers (RFC 9113 and 7541).

The most frequent frames are parsed here, without padding and priorities; hyperframe parses all
others. Headers that are in the tables are looked up here; hpack packs and unpacks all others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Protocol

from attrs import frozen
from hpack import HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import Decoder, Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame

log = logging.getLogger(__name__)


class ErrorCode(IntEnum):
    """Error codes of RST_STREAM and GOAWAY frames."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


@frozen
class Refusal:
    """Why a stream is reset for what the peer sent; the connection stays.

    Args:
        code: sent in the RST_STREAM frame.
        reason: what the peer sent, for the call's status.
    """

    code: ErrorCode
    reason: str


class ConnectionFault(Exception):
    """The peer broke the protocol: the whole connection must end.

    Args:
        code: sent in the GOAWAY frame.
        message: what the peer did, for the logs of both sides.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


#: Largest frame accepted; more than the minimum of 16 KiB saves work on long messages.
MAX_FRAME = 1 << 18
#: Longer header lists end the connection. Up to this size they are unpacked, which keeps the HPACK
#: state; hpack takes a third of a second for the worst list of this size, and quadratic time.
MAX_UNPACKED = 1024 * 1024
#: Frames that one header block may have.
_MOST_PIECES = 128

HEAD = 9
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x4, 0x6, 0x8, 0x9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_STREAM_ID = 0x7FFFFFFF


def frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a frame's payload."""
    return (size << 48 | kind << 40 | flags << 32 | stream_id).to_bytes(HEAD, "big")


class FrameHandler(Protocol):
    """Handles frames; every method may raise ConnectionFault."""

    def data_came(self, stream_id: int, payload: bytes, size: int, ended: bool) -> None:
        """Handle DATA; flow control counts it as `size` bytes."""

    def headers_came(self, stream_id: int, block: bytes, ended: bool) -> None:
        """Handle a whole header block, still packed."""

    def window_came(self, stream_id: int, size: int) -> None:
        """Handle WINDOW_UPDATE; stream 0 is the connection."""

    def ping_came(self, payload: bytes) -> None:
        """Handle PING: send the same bytes back."""

    def frame_came(self, frame: Frame) -> None:
        """Handle any other frame."""

    def frame_failed(self, stream_id: int) -> None:
        """Handle a bug in the handling of a frame."""


class FrameReader:
    """Parses frames from bytes.

    Args:
        handler: is called for each frame.
    """

    def __init__(self, handler: FrameHandler) -> None:
        self._handler = handler
        self._rest = b""
        self._settled = False
        self._block_of = 0
        self._block_ended = False
        self._block: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Add bytes and handle the frames that they complete.

        Raises:
            ConnectionFault: if the peer broke the protocol.
        """
        if self._rest:
            data = self._rest + data
        position, size = 0, len(data)
        while size - position >= HEAD:
            head = int.from_bytes(data[position : position + HEAD], "big")
            length = head >> 48
            if length > MAX_FRAME:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            start = position + HEAD
            end = start + length
            if end > size:
                break
            kind, stream_id = head >> 40 & 0xFF, head & _STREAM_ID
            try:
                self._frame(kind, head >> 32 & 0xFF, stream_id, data, start, end)
            except ConnectionFault:
                raise
            except Exception:
                # A bug here costs one call, not all calls of the connection, unless the frame was
                # about the connection itself.
                if not stream_id and kind != WINDOW_UPDATE:
                    raise
                log.exception("handling a frame failed")
                self._handler.frame_failed(stream_id)
            position = end
        self._rest = data[position:]

    def _frame(
        self, kind: int, flags: int, stream_id: int, data: bytes, start: int, end: int
    ) -> None:
        if not self._settled:
            if kind != SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settled = True
        if self._block and (kind != CONTINUATION or stream_id != self._block_of):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        handler = self._handler
        if kind == DATA and stream_id and not flags & PADDED:
            handler.data_came(stream_id, data[start:end], end - start, bool(flags & END_STREAM))
        elif kind == HEADERS and stream_id and not flags & (PADDED | PRIORITY):
            self._headers(stream_id, data[start:end], flags)
        elif kind == WINDOW_UPDATE and end - start == 4:
            size = int.from_bytes(data[start:end], "big") & _STREAM_ID
            if size == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window of zero")
            handler.window_came(stream_id, size)
        elif kind == PING and end - start == 8 and not stream_id:
            if not flags & ACK:
                handler.ping_came(data[start:end])
        else:
            self._other(memoryview(data)[start - HEAD : start], memoryview(data)[start:end], flags)

    def _other(self, head: memoryview, body: memoryview, flags: int) -> None:
        try:
            frame, _ = Frame.parse_frame_header(head)
            frame.parse_body(body)
        except Exception as error:
            # It may have held headers, without which later headers cannot be unpacked.
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"malformed frame: {error}") from error
        if isinstance(frame, DataFrame):
            size, ended = frame.flow_controlled_length, bool(flags & END_STREAM)
            self._handler.data_came(frame.stream_id, frame.data, size, ended)
        elif isinstance(frame, HeadersFrame):
            self._headers(frame.stream_id, frame.data, flags)
        elif isinstance(frame, ContinuationFrame):
            self._continuation(frame.data, flags)
        elif isinstance(frame, SettingsFrame) or type(frame) is not Frame:
            self._handler.frame_came(frame)

    def _headers(self, stream_id: int, block: bytes, flags: int) -> None:
        ended = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._handler.headers_came(stream_id, block, ended)
        else:
            self._block_of, self._block_ended, self._block = stream_id, ended, [block]

    def _continuation(self, piece: bytes, flags: int) -> None:
        if not self._block:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of no headers")
        self._block.append(piece)
        if len(self._block) > _MOST_PIECES or sum(map(len, self._block)) > MAX_UNPACKED:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._handler.headers_came(self._block_of, block, self._block_ended)


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
