"""Single values of the configuration: names, socket paths, durations, addresses."""

from __future__ import annotations

import math
import re

from criproxy.config.schema import ConfigError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: sun_path of a unix socket address, less the closing zero.
_LONGEST_PATH = 107
_SHORTEST_WAIT = 0.01


def runtime_name(value: object, where: str) -> str:
    """A runtime's name: letters, digits, dots and dashes, so that it can prefix ids and images.

    Raises:
        ConfigError: naming `where` it stands.
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
        ConfigError: naming `where` it stands.
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
        ConfigError: naming `where` it stands.
    """
    if not isinstance(value, str) or not value.startswith("/"):
        raise ConfigError(f"{where}: {value!r} is not an absolute path (nothing keeps no state)")
    return value


def wait(value: object, where: str, *, forever: bool = False) -> float:
    """A duration that something is waited for; too short ones would only keep the proxy busy.

    Raises:
        ConfigError: naming `where` it stands.
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
        ConfigError: naming `where` it stands.
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
        ConfigError: naming `where` it stands.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ConfigError(f"{where}: {value!r} is not a whole number above 0")


def address(value: object, where: str) -> tuple[str, int]:
    """Host and port from 'HOST:PORT', '[IPv6]:PORT' or ':PORT' (loopback).

    Raises:
        ConfigError: naming `where` it stands.
    """
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{where}: {value!r} is not HOST:PORT, as in 127.0.0.1:10009")
    return host.strip("[]") or "127.0.0.1", int(port)
