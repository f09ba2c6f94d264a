"""The streaming server: exec, attach and port-forward for the kubelet and its clients.

It speaks SPDY/3.1 and WebSocket, gives out single-use URLs, and leaves the work to the handlers
that the core brings. See docs/streaming.md.
"""

from virtlet.streaming.handlers import (
    AttachRequest,
    AttachRunner,
    ExecRequest,
    ExecRunner,
    ExitStatus,
    Handlers,
    InputStream,
    OutputStream,
    PortDialer,
    PortForwardRequest,
    SessionStreams,
    StreamClosed,
    TerminalSize,
)
from virtlet.streaming.lifetime import SessionLimits
from virtlet.streaming.streaming_server import StreamingServer

__all__ = [
    "AttachRequest",
    "AttachRunner",
    "ExecRequest",
    "ExecRunner",
    "ExitStatus",
    "Handlers",
    "InputStream",
    "OutputStream",
    "PortDialer",
    "PortForwardRequest",
    "SessionLimits",
    "SessionStreams",
    "StreamClosed",
    "StreamingServer",
    "TerminalSize",
]
