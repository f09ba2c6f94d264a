"""gRPC on the wire: framed messages, metadata, deadlines, statuses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from attrs import frozen

from criproxy.http2.frames import ErrorCode, Header, first


class Code(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call ended with this status.

    Args:
        code: the status code.
        message: what failed, on what, and what to do.
        trailers: further trailing metadata, such as `grpc-status-details-bin`.
    """

    def __init__(self, code: Code, message: str, trailers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailers = tuple(trailers)


class PeerError(RpcError):
    """The peer itself ended the call with this status."""


_OF_STATUS = frozenset((b"grpc-status", b"grpc-message"))
_OF_RESPONSE = frozenset((b":status", b"content-type", b"grpc-encoding", b"grpc-accept-encoding"))


#: Trailers of nearly every call of Go's servers.
_FINE = frozenset(((b"grpc-status", b"0"), (b"grpc-message", b"")))
_FINE_ERROR = PeerError(Code.OK, "")


def code_of(trailers: Sequence[Header]) -> Code:
    """Return the code in a list of trailers, UNKNOWN without a valid one."""
    try:
        return Code(int(first(trailers, b"grpc-status") or b"2"))
    except ValueError:
        return Code.UNKNOWN


def error_of(trailers: Sequence[Header]) -> PeerError:
    """Return the status and metadata in a list of trailers as an exception."""
    if all(header in _FINE for header in trailers):
        return _FINE_ERROR
    message = unquote_to_bytes(first(trailers, b"grpc-message") or b"").decode(errors="replace")
    rest = [h for h in trailers if h[0] not in _OF_STATUS and h[0] not in _OF_RESPONSE]
    return PeerError(code_of(trailers), message, rest)


def trailers_of(code: Code, message: str = "", extra: Sequence[Header] = ()) -> list[Header]:
    """Return a status as trailers."""
    trailers: list[Header] = [(b"grpc-status", b"%d" % code)]
    if message:
        # gRPC leaves printable ASCII as it is, except for the percent sign.
        safe = "".join(chr(c) for c in range(0x20, 0x7F) if c != 0x25)
        trailers.append((b"grpc-message", quote(message, safe=safe).encode()))
    trailers.extend(extra)
    return trailers


def of_reset(code: int) -> Code:
    """Return the status for an RST_STREAM code (gRPC over HTTP/2, "Errors")."""
    if code == ErrorCode.REFUSED_STREAM:
        return Code.UNAVAILABLE
    if code == ErrorCode.CANCEL:
        return Code.CANCELLED
    if code == ErrorCode.ENHANCE_YOUR_CALM:
        return Code.RESOURCE_EXHAUSTED
    return Code.INTERNAL


def of_http(status: bytes | None) -> Code:
    """Return the status for an HTTP status without a gRPC status."""
    codes = {
        b"400": Code.INTERNAL,
        b"401": Code.UNAUTHENTICATED,
        b"403": Code.PERMISSION_DENIED,
        b"404": Code.UNIMPLEMENTED,
        b"429": Code.UNAVAILABLE,
        b"502": Code.UNAVAILABLE,
        b"503": Code.UNAVAILABLE,
        b"504": Code.UNAVAILABLE,
    }
    return codes.get(status or b"", Code.UNKNOWN)


_PREFIX = 5
#: zlib's window argument that accepts gzip and zlib headers.
_ANY_HEADER = 32 + zlib.MAX_WBITS


@frozen
class Message:
    """One message as received.

    Args:
        raw: prefix and payload, to be passed on unchanged.
        compressed: whether the payload is compressed with the call's encoding.
    """

    raw: bytes
    compressed: bool

    def payload(self, encoding: bytes | None, limit: int) -> bytes:
        """Return the message without prefix and compression.

        Args:
            encoding: the call's `grpc-encoding` header.
            limit: bytes that the unpacked message may have.

        Raises:
            RpcError: UNIMPLEMENTED for an unknown encoding, INVALID_ARGUMENT if it does not unpack,
                RESOURCE_EXHAUSTED if it is larger than the limit.
        """
        if not self.compressed:
            return self.raw[_PREFIX:]
        if encoding not in (b"gzip", b"deflate"):
            name = (encoding or b"").decode(errors="replace")
            raise RpcError(
                Code.UNIMPLEMENTED, f"message compressed with {name!r}; send gzip, deflate or none"
            )
        unpacker = zlib.decompressobj(_ANY_HEADER)
        try:
            payload = unpacker.decompress(self.raw[_PREFIX:], limit)
        except zlib.error as error:
            raise RpcError(
                Code.INVALID_ARGUMENT, f"the compressed message does not unpack: {error}"
            ) from error
        if unpacker.unconsumed_tail:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"message larger than {limit} bytes unpacked")
        return payload


def frame(payload: bytes) -> bytes:
    """Return a message with its prefix, uncompressed."""
    return b"\x00" + len(payload).to_bytes(4, "big") + payload


class MessageReader:
    """Parses messages from the bytes of a stream.

    Args:
        limit: bytes that one message may have; a longer one is refused by its prefix.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def pending(self) -> int:
        """Number of bytes that were not returned yet."""
        return self._size

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        if data:
            self._parts.append(data)
            self._size += len(data)

    def next(self) -> Message | None:
        """Return the next complete message, or None.

        Raises:
            RpcError: RESOURCE_EXHAUSTED if its prefix announces more than the limit, INTERNAL if
                its flags are unknown.
        """
        if self._size < _PREFIX:
            return None
        if len(self._parts[0]) < _PREFIX:
            self._join()
        head = self._parts[0]
        length = int.from_bytes(head[1:_PREFIX], "big")
        if head[0] > 1:
            raise RpcError(Code.INTERNAL, "malformed gRPC message: unknown flags")
        if length > self._limit:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f"message of {length} bytes; at most {self._limit} can pass here",
            )
        total = _PREFIX + length
        if self._size < total:
            return None
        whole = self._join()
        self._parts = [whole[total:]] if len(whole) > total else []
        self._size -= total
        return Message(whole[:total] if self._size else whole, bool(whole[0]))

    def rest(self) -> bytes:
        """Return the bytes that are left, complete or not."""
        whole = self._join()
        self._parts, self._size = [], 0
        return whole

    def _join(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""


_UNITS = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}
_TRANSPORT = frozenset((b"te", b"content-type", b"user-agent", b"content-length"))


@lru_cache(maxsize=256)
def is_metadata(name: bytes) -> bool:
    """Whether a header is the caller's, not HTTP's or gRPC's.

    `grpc-…-bin` headers (tracing, status details) are binary metadata made by gRPC and pass too.
    """
    if name.startswith(b":") or name in _TRANSPORT:
        return False
    return not name.startswith(b"grpc-") or name.endswith(b"-bin")


def metadata_of(headers: Sequence[Header]) -> list[Header]:
    """Return the caller's metadata in a list of headers."""
    return [h for h in headers if is_metadata(h[0])]


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout` header.

    Raises:
        RpcError: INVALID_ARGUMENT if it is malformed.
    """
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not digits.isdigit() or len(digits) > 8:
        shown = value[:20].decode(errors="replace")
        raise RpcError(Code.INVALID_ARGUMENT, f"grpc-timeout {shown!r} is not a gRPC timeout")
    return int(digits) * _UNITS[unit]


def format_timeout(seconds: float) -> bytes:
    """Return a `grpc-timeout` value of at least one microsecond and at most eight digits."""
    micros = max(1, int(seconds * 1e6))
    for unit, factor in ((b"u", 1), (b"m", 1000), (b"S", 1000000)):
        if micros // factor < 100_000_000:
            return b"%d%s" % (micros // factor, unit)
    return b"99999999S"
