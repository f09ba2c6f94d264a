"""SPDY/3.1 frames to bytes and back, with their header blocks.

Source: SPDY protocol draft 3.1, sections 2.2, 2.6, 2.6.10 and 2.6.10.1. Flow control follows what
all Kubernetes peers run (moby/spdystream): WINDOW_UPDATE is read and has no effect, data is never
held back for want of a window, and back-pressure is that of TCP.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from enum import IntEnum
from importlib.resources import files

from attrs import field, frozen

from virtlet.streaming.handlers import ProtocolError

_DICTIONARY = files("virtlet.streaming").joinpath("dictionary.bin").read_bytes()
_COUNT = struct.Struct(">I")

MAX_HEADER_BYTES = 64 * 1024
"""Of one block, unpacked. Ours hold three short headers."""

VERSION = 3
MAX_CONTROL_BYTES = 64 * 1024
"""Of one control frame; the protocol allows 16 MiB, Kubernetes needs some hundred bytes."""
MAX_DATA_BYTES = (1 << 24) - 1
_PART_BYTES = 64 * 1024
_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")
_PAIR = struct.Struct(">II")
_SYN = struct.Struct(">IIBB")
_ID = 0x7FFFFFFF
_CONTROL = 0x80000000
FLAG_FIN = 1
FLAG_UNIDIRECTIONAL = 2


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


class FrameKind(IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(IntEnum):
    """Why a stream is reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_ALREADY_CLOSED = 9


class GoAwayStatus(IntEnum):
    """Why a connection ends."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@frozen
class SynStream:
    """Opens a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False
    unidirectional: bool = False


@frozen
class SynReply:
    """Accepts a stream."""

    stream_id: int
    headers: Mapping[str, str] = field(factory=dict)
    fin: bool = False


@frozen
class Headers:
    """Later headers of a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@frozen
class RstStream:
    """Tears a stream down in both directions; the status may be one we have no name for."""

    stream_id: int
    status: int


@frozen
class SettingsFrame:
    """Values by their number."""

    values: Mapping[int, int]


@frozen
class Ping:
    """Comes back with the same number from the other side."""

    ping_id: int


@frozen
class GoAway:
    """The sender opens and accepts no more streams."""

    last_stream_id: int
    status: int


@frozen
class WindowUpdate:
    """The receiver of a stream has room for more."""

    stream_id: int
    delta: int


@frozen
class DataFrame:
    """Bytes of a stream: a frame, or up to 64 KiB of one, for long frames are passed on in parts.

    `fin` is set with the last part of a frame that ends its direction of the stream.
    """

    stream_id: int
    data: bytes
    fin: bool = False


Frame = (
    SynStream
    | SynReply
    | Headers
    | RstStream
    | SettingsFrame
    | Ping
    | GoAway
    | WindowUpdate
    | DataFrame
)


class FrameEncoder:
    """Encodes the frames of one direction, in the order in which they are sent."""

    def __init__(self) -> None:
        self._packer = HeaderPacker()

    def encode(self, frame: Frame) -> bytes:
        """Return the frame's bytes.

        Raises:
            ValueError: data over the 16 MiB of a frame.
        """
        match frame:
            case DataFrame(stream_id, data, fin):
                if len(data) > MAX_DATA_BYTES:
                    raise ValueError(f"{len(data)} bytes of data do not fit into one frame")
                head = _HEAD.pack(stream_id & _ID, fin * FLAG_FIN << 24 | len(data))
                return head + data
            case SynStream(stream_id, headers, fin, unidirectional):
                flags = fin * FLAG_FIN | unidirectional * FLAG_UNIDIRECTIONAL
                body = _SYN.pack(stream_id, 0, 0, 0) + self._packer.pack(headers)
                return _control(FrameKind.SYN_STREAM, body, flags)
            case SynReply(stream_id, headers, fin):
                body = _WORD.pack(stream_id) + self._packer.pack(headers)
                return _control(FrameKind.SYN_REPLY, body, fin * FLAG_FIN)
            case Headers(stream_id, headers, fin):
                body = _WORD.pack(stream_id) + self._packer.pack(headers)
                return _control(FrameKind.HEADERS, body, fin * FLAG_FIN)
            case RstStream(stream_id, status):
                return _control(FrameKind.RST_STREAM, _PAIR.pack(stream_id, status))
            case SettingsFrame(values):
                pairs = b"".join(_PAIR.pack(number, value) for number, value in values.items())
                return _control(FrameKind.SETTINGS, _WORD.pack(len(values)) + pairs)
            case Ping(ping_id):
                return _control(FrameKind.PING, _WORD.pack(ping_id))
            case GoAway(last_stream_id, status):
                return _control(FrameKind.GOAWAY, _PAIR.pack(last_stream_id, status))
            case WindowUpdate(stream_id, delta):
                return _control(FrameKind.WINDOW_UPDATE, _PAIR.pack(stream_id, delta))


def _control(kind: FrameKind, body: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(_CONTROL | VERSION << 16 | kind, flags << 24 | len(body)) + body


class FrameDecoder:
    """Decodes the frames of one direction from pieces of any size."""

    def __init__(self) -> None:
        self._unpacker = HeaderUnpacker()
        # A head, or a control frame, of which only a part has come.
        self._partial = bytearray()
        # The data frame whose bytes are passing through.
        self._stream_id = 0
        self._fin = False
        self._data_left = 0

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """Yield the frames, and parts of data frames, that the piece completes.

        Raises:
            ProtocolError: what came is not SPDY/3, or more than we take; nothing after it can be
                understood.
        """
        view = memoryview(piece)
        while view:
            if self._data_left:
                size = min(self._data_left, _PART_BYTES)
                part, view = view[:size], view[size:]
                self._data_left -= len(part)
                yield DataFrame(self._stream_id, bytes(part), self._fin and not self._data_left)
                continue
            wanted = self._wanted() - len(self._partial)
            self._partial += view[:wanted]
            view = view[wanted:]
            if len(self._partial) < self._wanted():
                continue
            whole = bytes(self._partial)
            self._partial.clear()
            first, second = _HEAD.unpack_from(whole)
            if first & _CONTROL:
                frame = self._control_frame(first, second >> 24, whole[_HEAD.size :])
                if frame is not None:
                    yield frame
            else:
                self._stream_id = first
                self._fin = bool(second >> 24 & FLAG_FIN)
                self._data_left = second & MAX_DATA_BYTES
                if not self._data_left:
                    yield DataFrame(first, b"", self._fin)

    def _wanted(self) -> int:
        """Return how many bytes what is being collected has, as far as is known."""
        if len(self._partial) < _HEAD.size:
            return _HEAD.size
        first, second = _HEAD.unpack_from(self._partial)
        if not first & _CONTROL:
            return _HEAD.size
        version, length = first >> 16 & 0x7FFF, second & MAX_DATA_BYTES
        if version != VERSION:
            raise ProtocolError(f"a control frame of SPDY version {version}; this server speaks 3")
        if length > MAX_CONTROL_BYTES:
            raise ProtocolError(
                f"a control frame of {length} bytes; this server takes {MAX_CONTROL_BYTES}"
            )
        return _HEAD.size + int(length)

    def _control_frame(self, first: int, flags: int, body: bytes) -> Frame | None:
        """Return the frame, or None for a type that this version does not know."""
        kind = first & 0xFFFF
        fin = bool(flags & FLAG_FIN)
        try:
            match kind:
                case FrameKind.SYN_STREAM:
                    stream_id, _associated, _priority, _slot = _SYN.unpack_from(body)
                    headers = self._unpacker.unpack(body[_SYN.size :])
                    one_way = bool(flags & FLAG_UNIDIRECTIONAL)
                    return SynStream(stream_id & _ID, headers, fin, one_way)
                case FrameKind.SYN_REPLY | FrameKind.HEADERS:
                    (stream_id,) = _WORD.unpack_from(body)
                    headers = self._unpacker.unpack(body[_WORD.size :])
                    cls = SynReply if kind == FrameKind.SYN_REPLY else Headers
                    return cls(stream_id & _ID, headers, fin)
                case FrameKind.RST_STREAM:
                    stream_id, status = _PAIR.unpack(body)
                    return RstStream(stream_id & _ID, status)
                case FrameKind.SETTINGS:
                    return _settings(body)
                case FrameKind.PING:
                    return Ping(*_WORD.unpack(body))
                case FrameKind.GOAWAY:
                    last, status = _PAIR.unpack(body)
                    return GoAway(last & _ID, status)
                case FrameKind.WINDOW_UPDATE:
                    stream_id, delta = _PAIR.unpack(body)
                    return WindowUpdate(stream_id & _ID, delta & _ID)
        except struct.error:
            name = FrameKind(kind).name
            raise ProtocolError(f"a {name} frame has the wrong length, {len(body)}") from None
        return None


def _settings(body: bytes) -> SettingsFrame:
    (count,) = _WORD.unpack_from(body)
    pairs = body[_WORD.size :]
    if len(pairs) != count * _PAIR.size:
        raise ProtocolError(f"a SETTINGS frame of {len(body)} bytes cannot hold {count} values")
    return SettingsFrame({number & 0xFFFFFF: value for number, value in _PAIR.iter_unpack(pairs)})
