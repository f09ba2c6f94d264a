"""Whether a configuration can work on this machine, before anything is started."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from criproxy.config.schema import Config, ConfigError

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
