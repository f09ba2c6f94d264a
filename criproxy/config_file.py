"""Where the configuration comes from: the YAML file, and the `--connect` option.

    listen: /run/criproxy/criproxy.sock
    http: 127.0.0.1:10009
    runtimes:
      - name: containerd            # the first is the primary
        socket: /run/containerd/containerd.sock
      - name: virtlet.cloud
        socket: /run/virtlet.sock
        handlers: [virtlet]
        grace: forever

docs/criproxy.md has every key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from criproxy.config import (
    PRIMARY_NAME,
    Config,
    ConfigError,
    Dial,
    Limits,
    RuntimeConfig,
    address,
    count,
    directory_path,
    duration,
    runtime_name,
    socket_path,
    wait,
)
from criproxy.log_lines import FORMS, LEVELS

#: Parses one value; raises ConfigError that names where the value is.
_Read = Callable[[Any, str], Any]


def _forever(value: object, where: str) -> float:
    return duration(value, where, forever=True)


def _wait_forever(value: object, where: str) -> float:
    return wait(value, where, forever=True)


def _handlers(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(h, str) and h for h in value):
        raise ConfigError(f"{where}: write a list of RuntimeClass handlers, as in [virtlet]")
    return tuple(value)


def _stream_url(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.startswith("http://"):
        raise ConfigError(f"{where}: {value!r} is not an URL such as http://127.0.0.1:10010")
    address(value.removeprefix("http://").rstrip("/"), where)
    return value.rstrip("/")


def _state_dir(value: object, where: str) -> str | None:
    return None if value is None else directory_path(value, where)


def _mode(value: object, where: str) -> int:
    text = f"{value:o}" if isinstance(value, int) else str(value)
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ConfigError(f"{where}: {value!r} is not a file mode such as '0660'")
    return mode


def _one_of(*words: str) -> _Read:
    def read(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(words)}")
        return value

    return read


DIAL: Mapping[str, _Read] = {
    "timeout": wait,
    "first_wait": wait,
    "longest_wait": wait,
}
LIMITS: Mapping[str, _Read] = {
    "read_seconds": wait,
    "call_seconds": _wait_forever,
    "calls": count,
    "message_bytes": count,
}
RUNTIME: Mapping[str, _Read] = {
    "name": runtime_name,
    "socket": socket_path,
    "handlers": _handlers,
    "grace": _forever,
    "stream_url": _stream_url,
    "dial": lambda value, where: Dial(**_section(value, where, DIAL)),
    "limits": lambda value, where: Limits(**_section(value, where, LIMITS)),
}


def _runtimes(value: object, where: str) -> tuple[RuntimeConfig, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: write a list of runtimes, the primary first")
    return tuple(
        RuntimeConfig(**_section(item, f"{where}[{i}]", RUNTIME, required=("name", "socket")))
        for i, item in enumerate(value)
    )


TOP: Mapping[str, _Read] = {
    "listen": socket_path,
    "runtimes": _runtimes,
    "http": address,
    "stream_listen": address,
    "state_dir": _state_dir,
    "socket_mode": _mode,
    "grace": _forever,
    "log_level": _one_of(*LEVELS),
    "log_format": _one_of(*FORMS),
}


def read_file(path: str) -> dict[str, Any]:
    """The values that a configuration file sets, checked one by one.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        if len(documents) > 1:
            raise ConfigError(f"holds {len(documents)} documents: write one alone")
        return _section({} if documents in ([], [None]) else documents[0], "", TOP)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def build(values: Mapping[str, Any]) -> Config:
    """A configuration from checked values.

    Raises:
        ConfigError: if the socket or the runtimes are missing.
    """
    if not values.get("listen"):
        raise ConfigError("no socket to listen on: give --listen or 'listen' in the configuration")
    if not values.get("runtimes"):
        raise ConfigError("no runtimes: give --connect or 'runtimes' in the configuration")
    return Config(**values)


def _section(
    value: object, where: str, keys: Mapping[str, _Read], *, required: Iterable[str] = ()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'top level'}: write keys and values, not {value!r}")
    path = f"{where}." if where else ""
    for key in value:
        if key not in keys:
            raise ConfigError(f"unknown key '{path}{key}'; known are {', '.join(keys)}")
    for key in required:
        if key not in value:
            raise ConfigError(f"'{path}{key}' is missing")
    return {key: keys[key](item, f"{path}{key}") for key, item in value.items()}


def parse_connect(text: str) -> tuple[RuntimeConfig, ...]:
    """The runtimes that a `--connect` value names.

    The first is the primary; it may have a name too, else it is called 'primary'.

    Raises:
        ConfigError: naming the part that does not fit.
    """
    runtimes = []
    for position, part in enumerate(text.split(",")):
        where = f"--connect, part {position + 1}"
        part = part.strip()
        name, colon, path = part.partition(":")
        if part.startswith(("/", "unix:")):
            name, path = "", part
        elif not colon:
            raise ConfigError(f"{where}: {part!r} is neither a socket path nor NAME:PATH")
        if not name and position > 0:
            raise ConfigError(
                f"{where}: only the first, the primary, goes without a name; write NAME:{part}"
            )
        runtimes.append(
            RuntimeConfig(
                name=runtime_name(name, where) if name else PRIMARY_NAME,
                socket=socket_path(path, where),
            )
        )
    return tuple(runtimes)
