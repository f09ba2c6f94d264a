"""The configuration as the rest of the proxy sees it."""

from __future__ import annotations

import math

from attrs import field, frozen

#: Longer than the kubelet's longest wait before it restarts a crashing container (5 minutes), so
#: that a runtime that itself runs as a pod gets another try before lists start to fail.
DEFAULT_GRACE = 600.0
DEFAULT_STATE_DIR = "/var/lib/criproxy"
PRIMARY_NAME = "primary"
FOREVER = math.inf


class ConfigError(Exception):
    """The configuration cannot work; the message says what to change."""


@frozen(kw_only=True)
class Dial:
    """How a runtime is connected to; all in seconds.

    Args:
        timeout: for one attempt, from connecting to the runtime's first answer.
        first_wait: after the first failed attempt; doubled after each further one.
        longest_wait: between two attempts at most.
    """

    timeout: float = 5.0
    first_wait: float = 0.1
    longest_wait: float = 2.0


@frozen(kw_only=True)
class Limits:
    """What a call to a runtime may take.

    Args:
        read_seconds: an answer to be merged with others' is waited for this long; then the
            runtime counts as not answering and its last known items are served.
        call_seconds: any other unary call may last this long; infinite leaves it to the client.
        calls: calls open at a time; further ones fail with RESOURCE_EXHAUSTED.
        message_bytes: longest message that is looked into. Answers that pass unread have no limit.
    """

    read_seconds: float = 10.0
    call_seconds: float = math.inf
    calls: int = 10_000
    message_bytes: int = 64 << 20


@frozen(kw_only=True)
class RuntimeConfig:
    """One runtime behind the proxy.

    Args:
        name: what annotations, image prefixes and messages call it.
        socket: path of its unix socket.
        handlers: RuntimeClass handlers that go to it, beside those it reports itself.
        grace: as in `Config`, for this runtime alone; None keeps to the common one.
        stream_url: base of the streaming URLs it gives without a host, such as
            `http://127.0.0.1:10010`.
    """

    name: str
    socket: str
    handlers: tuple[str, ...] = ()
    grace: float | None = None
    stream_url: str | None = None
    dial: Dial = field(factory=Dial)
    limits: Limits = field(factory=Limits)

    @property
    def image_prefix(self) -> str:
        """What image names of this runtime start with outside, unless it is the primary."""
        return self.name + "/"


@frozen(kw_only=True)
class Config:
    """Everything the proxy is told.

    Args:
        listen: path of the socket that the kubelet connects to.
        runtimes: the primary first.
        grace: seconds for which a runtime's last known items are served while it is away, before
            lists fail; `FOREVER` never fails them.
        http: host and port of the health and metrics endpoint, or None.
        stream_listen: host and port where relative streaming URLs are served.
        state_dir: where the last known items are kept over a restart; None keeps none.
        socket_mode: permissions of the listening socket.
        log_level, log_format: as in `criproxy.log_lines`.
    """

    listen: str
    runtimes: tuple[RuntimeConfig, ...]
    grace: float = DEFAULT_GRACE
    http: tuple[str, int] | None = None
    stream_listen: tuple[str, int] = ("127.0.0.1", 0)
    state_dir: str | None = DEFAULT_STATE_DIR
    socket_mode: int = 0o660
    log_level: str = "info"
    log_format: str = "json"
