"""The bounds of the streaming server: how many, how much, how long."""

from attrs import field, frozen
from attrs.validators import gt

KIB = 1024


@frozen(kw_only=True)
class Limits:
    """Bounds; all times in seconds."""

    max_connections: int = field(default=512, validator=gt(0))
    """Client connections with a session at once; one more is answered 503."""

    max_waiting: int = field(default=64, validator=gt(0))
    """Connections that have shown no token yet; one more ends the oldest of them."""

    max_streams: int = field(default=1024, validator=gt(1))
    """SPDY streams at once on one connection; a forwarded connection takes two."""

    max_pending_tokens: int = field(default=1000, validator=gt(0))
    """URLs given out and not yet used, as in the kubelet's own server."""

    token_seconds: float = field(default=60, validator=gt(0))
    """How long a URL can be used."""

    head_seconds: float = field(default=5, validator=gt(0))
    """For the TLS handshake, and again for the HTTP request."""

    stream_creation_seconds: float = field(default=30, validator=gt(0))
    """For a client to open all the streams of its session, as in the kubelet."""

    dial_seconds: float = field(default=30, validator=gt(0))
    """For a pod to accept a forwarded connection."""

    idle_seconds: float = field(default=4 * 3600, validator=gt(0))
    """A connection without data (pings are none) for so long is closed, as in the kubelet."""

    silent_seconds: float = field(default=60, validator=gt(0))
    """How long a client's host may leave unacknowledged what it is sent again and again."""

    stall_seconds: float = field(default=30, validator=gt(0))
    """How long one forwarded stream whose pod reads nothing may hold up the others of its
    connection; ten times that where it holds up none that is known."""

    half_closed_seconds: float = field(default=30, validator=gt(0))
    """How long a forwarded connection that the pod has finished waits for the client to finish."""

    linger_seconds: float = field(default=5, validator=gt(0))
    """How long a finished session waits for its client to hang up first."""

    receive_buffer: int = field(default=1024 * KIB, validator=gt(0))
    """Bytes received on one connection and not yet taken by handlers; its streams share it."""

    write_buffer: int = field(default=256 * KIB, validator=gt(0))
    """Bytes of one connection waiting for the client's network."""
