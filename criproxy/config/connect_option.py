"""The `--connect` option, in the original's form: PRIMARY_SOCK,NAME:SOCK[,…]."""

from __future__ import annotations

from criproxy.config.schema import PRIMARY_NAME, ConfigError, RuntimeConfig
from criproxy.config.values import runtime_name, socket_path


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
