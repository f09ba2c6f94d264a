"""Merge the layers of settings: default < objects < file < environment < command line."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virtlet.core.config.options import DATA_DIR
from virtlet.errors import InvalidArgument
from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.option import Option, Settings
from virtlet.model.plain import UnquotedError

log = logging.getLogger(__name__)

SECTIONS = ("handlers", "plugins")
"""Mappings of the file that are no options."""


def load(
    options: Iterable[Option[Any]],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    mapped: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    refused: Collection[str] = (),
    departed: Callable[[Path], Mapping[str, str]] = lambda data_dir: {},
) -> Settings:
    """Read every option.

    Args:
        options: all declared options.
        file: YAML configuration file, or None.
        environment: environment variables.
        flags: option field to the text given on the command line.
        mapped: option field to (text, its source) by VirtletConfigMappings.
        refused: plugins that are installed and were refused. If there are any, an unknown setting
            of the file may be theirs: it is logged and ignored.
        departed: takes the data directory and returns settings, by name, with the plugin that
            declared them and is not installed any more; these are logged and ignored.

    Raises:
        InvalidArgument: the file or a value is wrong; the message says which, and its source.
    """
    declared = {option.field: option for option in options}
    content = _read(file) if file else {}

    def value(option: Option[Any], places: Mapping[str, str]) -> Any:
        if option.field in flags:
            return parse(option, flags[option.field], f"flag {option.flag}")
        if option.env in environment:
            return parse(option, environment[option.env], f"environment {option.env}")
        if option.field in content:
            where = f"{file}: {option.field}"
            return parse(option, as_text(content[option.field], option, where), where)
        if option.field in mapped:
            text, source = mapped[option.field]
            return parse(option, text, f"{source}: {option.field}")
        return parse(option, fill(option.default, places), f"default of {option.field}")

    data_dir = value(DATA_DIR, {})
    unknown = [key for key in content if key not in {*declared, *SECTIONS}]
    if unknown:
        _look_at_unknown(file, unknown, declared, refused, departed(data_dir))
    default_root = str(data_dir) == DATA_DIR.default
    places = {
        "data_dir": str(data_dir),
        "socket_dir": "/run" if default_root else str(data_dir),
    }
    values = {name: value(option, places) for name, option in declared.items()}
    sections = {name: content[name] for name in SECTIONS if content.get(name) is not None}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise InvalidArgument(f"{file}: {name} must be a mapping")
    return Settings(values=MappingProxyType(values), sections=MappingProxyType(sections))


def said(
    options: Iterable[Option[Any]],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
) -> frozenset[str]:
    """Fields that the node's own file, environment or flags set.

    Raises:
        InvalidArgument: the file is wrong.
    """
    content = _read(file) if file else {}
    return frozenset(
        o.field for o in options if o.field in {*content, *flags} or o.env in environment
    )


def fill(default: str, places: Mapping[str, str]) -> str:
    """A default with `{data_dir}` and `{socket_dir}` replaced by paths."""
    for name, path in places.items():
        default = default.replace(f"{{{name}}}", path)
    return default


def _look_at_unknown(
    file: Path | None,
    unknown: Sequence[str],
    declared: Collection[str],
    refused: Collection[str],
    departed: Mapping[str, str],
) -> None:
    """Log and ignore settings that are or may be of absent plugins; refuse others."""
    for key in unknown:
        near = get_close_matches(str(key), {*declared, *SECTIONS}, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if str(key) in departed:
            log.warning(
                "%s: setting %r is passed over: it is of %s, which is not installed any more; take "
                "it out of the file, or install the plugin again",
                *(file, key, departed[str(key)]),
            )
        elif refused:
            names = ", ".join(sorted(refused))
            log.warning(
                "%s: setting %r is passed over: unknown, or of a refused plugin (%s)%s",
                *(file, key, names, hint),
            )
        else:
            raise InvalidArgument(
                f"{file}: unknown setting {key!r}{hint}; if it is of a plugin that is not "
                "installed any more, take it out of the file"
            )


def parse(option: Option[Any], text: str, where: str) -> Any:
    """The value of a text.

    Raises:
        InvalidArgument: it is none; names `where`.
    """
    try:
        if "\0" in text:
            raise ValueError("holds a NUL character")
        return option.kind.parse(text)
    except ValueError as error:
        raise InvalidArgument(f"{where}: {error} (wanted: {option.kind.name})") from None


def as_text(value: Any, option: Option[Any], where: str) -> str:
    """What stands in YAML or JSON, as the text of an option.

    Raises:
        InvalidArgument: it is a mapping, or a list of more than single values.
    """
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, dict | list) for part in parts):
        what = "a mapping" if isinstance(value, dict) else "a list of more than single values"
        raise InvalidArgument(f"{where}: is {what} (wanted: {option.kind.name})")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = load_yaml(file.read_text())
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{file}: is no UTF-8 text") from None
    except UnquotedError as error:
        raise InvalidArgument(f"{file}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidArgument(f"{file}: must hold a mapping of settings")
    return content
