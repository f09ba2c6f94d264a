"""The `flavor:` section of a handler in the configuration."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from virtlet.errors import FailedPrecondition
from virtlet.model.flavor import Flavor
from virtlet.model.option import BYTES, choice, integer
from virtlet.model.pod import Profile
from virtlet.plugins.flavors.annotations import disk_size

LEAST_BUFFER, MOST_BUFFER = 16 << 20, 1 << 30
"""Bytes of the translation buffer; QEMU takes no more than a GiB."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


def _number(value: Any) -> int:
    return integer(1, 255).parse(_scalar(value))


def _memory(value: Any) -> int:
    return BYTES.parse(_scalar(value))


def _buffer(value: Any) -> int:
    size = BYTES.parse(_scalar(value))
    if not LEAST_BUFFER <= size <= MOST_BUFFER:
        raise ValueError("must be between 16Mi and 1Gi")
    return size


def _size(value: Any) -> int:
    return disk_size(_scalar(value))


def _word(value: Any) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError("must be a word of letters, digits and . _ + -")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    return lambda value: choice(*words).parse(_word(value))


def _model(value: Any) -> str:
    return "" if value == "" else _word(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _extras(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping")
    for key, item in value.items():
        if not isinstance(key, str) or isinstance(item, dict | list):
            raise ValueError("must be a mapping of names to texts or numbers")
    return {key: item if isinstance(item, str) else str(item) for key, item in value.items()}


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a number or a quantity")
    return str(value)


_SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "vcpus": _number,
    "max_vcpus": _number,
    "memory": _memory,
    "max_memory": _memory,
    "cpu_model": _model,
    "machine": _word,
    "firmware": _one_of("bios", "uefi"),
    "disk_bus": _one_of("scsi", "virtio"),
    "root_size": _size,
    "guest_agent": _boolean,
    "translation_buffer": _buffer,
    "extras": _extras,
}


def check_flavors(handlers: Mapping[str, Any]) -> None:
    """Read the flavor of every handler in the configuration; all else of them is the core's.

    Raises:
        FailedPrecondition: as `flavor_of`.
    """
    for handler, section in handlers.items():
        match section:
            case {"without": [*names]} if "flavors" in names:
                pass  # it means something to another plugin
            case {"flavor": Mapping() as settings}:
                flavor_of(Profile(handler=handler, plugins=(), flavor=settings))


def flavor_of(profile: Profile) -> Flavor:
    """The flavor that a handler's section describes, the defaults where it says nothing.

    Raises:
        FailedPrecondition: the section has an unknown key or an impossible value.
    """
    settings: dict[str, Any] = {}
    for key, value in profile.flavor.items():
        where = f"configuration: handler {profile.handler!r}: flavor"
        check = _SETTINGS.get(key)
        if check is None:
            near = get_close_matches(str(key), _SETTINGS, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise FailedPrecondition(
                f"{where} has the unknown key {key!r}{hint}; known: {', '.join(_SETTINGS)}"
            )
        try:
            settings[key] = check(value)
        except ValueError as error:
            raise FailedPrecondition(f"{where}: {key}: {error}") from None
    return Flavor(**settings)
