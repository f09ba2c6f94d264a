"""The streaming server: exec, attach and port-forward for the kubelet and its clients.

It speaks SPDY/3.1 and WebSocket, gives out single-use URLs, and leaves the work to the handlers
that the core brings. See docs/streaming.md.
"""

from virtlet.streaming.limits import Limits
from virtlet.streaming.server import StreamingServer
from virtlet.streaming.sessions import (
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

__all__ = [
    "AttachRequest",
    "AttachRunner",
    "ExecRequest",
    "ExecRunner",
    "ExitStatus",
    "Handlers",
    "InputStream",
    "Limits",
    "OutputStream",
    "PortDialer",
    "PortForwardRequest",
    "SessionStreams",
    "StreamClosed",
    "StreamingServer",
    "TerminalSize",
]
