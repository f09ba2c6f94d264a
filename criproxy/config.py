"""The settings of the proxy, their defaults, and whether they can work on this machine."""

from __future__ import annotations

import math
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

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
    """How to connect to a runtime; all in seconds.

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
    """Limits of calls to a runtime.

    Args:
        read_seconds: wait this long for an answer that is merged with those of other runtimes;
            then serve the last known items instead.
        call_seconds: limit of any other unary call; infinite leaves it to the client.
        calls: calls open at a time; further ones fail with RESOURCE_EXHAUSTED.
        message_bytes: longest message that is decoded. Other messages have no limit.
    """

    read_seconds: float = 10.0
    call_seconds: float = math.inf
    calls: int = 10_000
    message_bytes: int = 64 << 20


@frozen(kw_only=True)
class RuntimeConfig:
    """One runtime behind the proxy.

    Args:
        name: used in annotations, image prefixes and messages.
        socket: path of its unix socket.
        handlers: RuntimeClass handlers that go to it, besides those in its Status.
        grace: as in `Config`, for this runtime alone; None takes the common one.
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
        """Prefix of this runtime's image names outside, unless it is the primary."""
        return self.name + "/"


@frozen(kw_only=True)
class Config:
    """The whole configuration.

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


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: sun_path of a unix socket address, less the closing zero.
_LONGEST_PATH = 107
_SHORTEST_WAIT = 0.01


def runtime_name(value: object, where: str) -> str:
    """A runtime's name: letters, digits, dots and dashes, so that it can prefix ids and images.

    Raises:
        ConfigError: names `where` the value is.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value) or "__" in value:
        raise ConfigError(
            f"{where}: {value!r} cannot name a runtime; use letters, digits, '.', '-' and '_' "
            "(no double '__'), at most 63, as in 'virtlet.cloud'"
        )
    return value


def socket_path(value: object, where: str) -> str:
    """An absolute socket path; `unix://` before it is dropped.

    Raises:
        ConfigError: names `where` the value is.
    """
    path = value if isinstance(value, str) else ""
    for scheme in ("unix://", "unix:"):
        path = path.removeprefix(scheme)
    if not path.startswith("/"):
        raise ConfigError(f"{where}: {value!r} is not an absolute socket path")
    if len(path.encode()) > _LONGEST_PATH:
        raise ConfigError(
            f"{where}: {path!r} has {len(path.encode())} bytes; unix sockets take "
            f"{_LONGEST_PATH} at most"
        )
    return path


def directory_path(value: object, where: str) -> str:
    """An absolute path of a directory.

    Raises:
        ConfigError: names `where` the value is.
    """
    if not isinstance(value, str) or not value.startswith("/"):
        raise ConfigError(f"{where}: {value!r} is not an absolute path (nothing keeps no state)")
    return value


def wait(value: object, where: str, *, forever: bool = False) -> float:
    """A duration to wait; refuse very short ones, which would keep the proxy busy.

    Raises:
        ConfigError: names `where` the value is.
    """
    seconds = duration(value, where, forever=forever)
    if seconds < _SHORTEST_WAIT:
        raise ConfigError(
            f"{where}: {value!r} is too short; write {_SHORTEST_WAIT * 1000:g}ms or more"
        )
    return seconds


def duration(value: object, where: str, *, forever: bool = False) -> float:
    """Seconds from a number or a text such as '500ms', '10s', '5m', '1h', 'forever'.

    Raises:
        ConfigError: names `where` the value is.
    """
    if forever and value == "forever":
        return math.inf
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    choices = "a duration such as 500ms, 10s, 5m or 1h" + (", or 'forever'" if forever else "")
    raise ConfigError(f"{where}: {value!r} is not {choices}")


def count(value: object, where: str) -> int:
    """A whole number above zero.

    Raises:
        ConfigError: names `where` the value is.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ConfigError(f"{where}: {value!r} is not a whole number above 0")


def address(value: object, where: str) -> tuple[str, int]:
    """Host and port from 'HOST:PORT', '[IPv6]:PORT' or ':PORT' (loopback).

    Raises:
        ConfigError: names `where` the value is.
    """
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{where}: {value!r} is not HOST:PORT, as in 127.0.0.1:10009")
    return host.strip("[]") or "127.0.0.1", int(port)


_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
}


def check(config: Config) -> None:
    """Refuse what can only be a mistake.

    A runtime's socket may be missing: runtimes may start later.

    Raises:
        ConfigError: names what clashes, or what is in the place of a socket or directory.
    """
    _distinct(config)
    for runtime in config.runtimes:
        _socket(runtime.socket, f"runtime {runtime.name}: {runtime.socket}")
    _socket(config.listen, f"cannot listen on {config.listen}: it")
    if config.state_dir is not None:
        _below_directories(os.path.join(config.state_dir, "x"), "the state directory's files")


def cannot_listen(path: str) -> str | None:
    """Return why the socket cannot be listened on now, or None if it can.

    This can change soon: a service manager creates the directory when it starts the proxy, and on
    a running node the same proxy serves the socket already.
    """
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return f"cannot listen on {path}: there is no directory {directory}"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return None
    return f"cannot listen on {path}: another process serves it"


def _socket(path: str, what: str) -> None:
    """Raise ConfigError if the path is not a socket, or can never be one."""
    _below_directories(path, what)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        # The socket, or the target of a link, may appear later.
        return
    except OSError as error:
        raise ConfigError(f"{what} cannot be a socket: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{what} is not a socket ({_KINDS.get(stat.S_IFMT(mode), 'something')})")


def _below_directories(path: str, what: str) -> None:
    """Raise ConfigError if a parent of the path is not a directory."""
    for parent in reversed(Path(path).parents):
        try:
            mode = os.stat(parent).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{what} cannot be reached: {parent}: {error.strerror}") from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(f"{what} cannot be there: {parent} is not a directory")


def _distinct(config: Config) -> None:
    names: dict[str, str] = {}
    sockets: dict[str, str] = {}
    handlers: dict[str, str] = {}
    listen = os.path.realpath(config.listen)
    for runtime in config.runtimes:
        if runtime.name in names:
            raise ConfigError(
                f"two runtimes are called {runtime.name!r}: {names[runtime.name]} and "
                f"{runtime.socket}; give each its own name"
            )
        names[runtime.name] = runtime.socket
        real = os.path.realpath(runtime.socket)
        if real == listen:
            raise ConfigError(
                f"runtime {runtime.name}: {runtime.socket} is the socket that criproxy itself "
                "listens on; it would call itself"
            )
        _claim(sockets, real, runtime.name, "have the socket")
        for handler in runtime.handlers:
            _claim(handlers, handler, runtime.name, "claim the handler")


def _claim(taken: dict[str, str], key: str, name: str, verb: str) -> None:
    holder = taken.setdefault(key, name)
    if holder != name:
        raise ConfigError(f"runtimes {holder} and {name} both {verb} {key!r}; only one can")
