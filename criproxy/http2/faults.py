"""Error codes of RFC 9113, section 7, and the exception that ends a connection."""

from __future__ import annotations

from enum import IntEnum

from attrs import frozen


class ErrorCode(IntEnum):
    """What RST_STREAM and GOAWAY frames give as their reason."""

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
    """Why a stream is given up for what the peer sent; the connection goes on.

    Args:
        code: what the RST_STREAM frame says.
        reason: what came, for the call's status.
    """

    code: ErrorCode
    reason: str


class ConnectionFault(Exception):
    """The peer broke the protocol so that the whole connection has to go.

    Args:
        code: what the GOAWAY frame says.
        message: what the peer did, for its log and ours.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
