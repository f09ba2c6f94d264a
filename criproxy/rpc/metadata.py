"""Which headers are a call's metadata, and its deadline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from criproxy.http2.headers import Header
from criproxy.rpc.status import Code, RpcError

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
    """Whether a header belongs to the caller, not to HTTP or gRPC.

    `grpc-…-bin` headers (tracing, status details) are binary metadata of gRPC's own making and
    pass as well.
    """
    if name.startswith(b":") or name in _TRANSPORT:
        return False
    return not name.startswith(b"grpc-") or name.endswith(b"-bin")


def metadata_of(headers: Sequence[Header]) -> list[Header]:
    """The caller's metadata in a list of headers."""
    return [h for h in headers if is_metadata(h[0])]


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` header.

    Raises:
        RpcError: INVALID_ARGUMENT when it is none.
    """
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not digits.isdigit() or len(digits) > 8:
        shown = value[:20].decode(errors="replace")
        raise RpcError(Code.INVALID_ARGUMENT, f"grpc-timeout {shown!r} is no gRPC timeout")
    return int(digits) * _UNITS[unit]


def format_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` header; at least one microsecond, eight digits at most."""
    micros = max(1, int(seconds * 1e6))
    for unit, factor in ((b"u", 1), (b"m", 1000), (b"S", 1000000)):
        if micros // factor < 100_000_000:
            return b"%d%s" % (micros // factor, unit)
    return b"99999999S"
