"""gRPC status: codes, exceptions, and the form on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from urllib.parse import quote, unquote_to_bytes

from criproxy.http2.frames import ErrorCode
from criproxy.http2.headers import Header, first


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
