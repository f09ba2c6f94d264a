"""Model types to JSON and back, for the database."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.strategies import configure_tagged_union

from virtlet.model.disk import Volume
from virtlet.model.vm import Device, Mount

T = TypeVar("T")


def _make() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(
        lambda kind: getattr(kind, "__origin__", None) is Mapping, lambda value, _: dict(value)
    )
    converter.register_unstructure_hook_func(
        lambda kind: getattr(kind, "__origin__", None) is Mapping, dict
    )
    configure_tagged_union(Volume, converter)
    configure_tagged_union(Mount | Device, converter)
    return converter


_converter = _make()


def encode(value: Any, kind: Any) -> str:
    """A value of `kind` as JSON."""
    return json.dumps(_converter.unstructure(value, kind), separators=(",", ":"))


def decode(text: str, kind: type[T]) -> T:
    """The value that `encode` wrote."""
    return _converter.structure(json.loads(text), kind)
