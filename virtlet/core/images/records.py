"""What the store remembers of an image, in a file beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import field, frozen

from virtlet.host.files import write_atomically

SUFFIX = ".json"
VERSION = 1


@frozen
class Origin:
    """Where a name's content came from, to find out cheaply whether it is still the same."""

    source: str
    """Hash of the address; the address itself may hold credentials."""
    validator: str
    name: str = ""
    """The name as it was pulled, prefix and tag included, without a digest; "" where that was not
    written down yet: such a name stands for every tag."""
    handler: str = ""
    """The handler that it was pulled for."""


@frozen
class ImageRecord:
    """What is known of a file in the store."""

    format: str
    size: int
    virtual_size: int
    pulled_at: int
    """Nanoseconds since the epoch."""
    origins: Mapping[str, Origin] = field(factory=dict)
    """By reference."""
    annotations: Mapping[str, str] = field(factory=dict)
    """What the fetching plugin told of it last."""
    recognized_by: str = ""
    """The plugin that said what it is; "" where that was not written down yet."""


def write_record(path: Path, record: ImageRecord) -> None:
    """Store a record in one step."""
    document: dict[str, Any] = {"version": VERSION, **cattrs.unstructure(record)}
    write_atomically(path, json.dumps(document).encode(), mode=0o600)


def read_record(path: Path) -> ImageRecord | None:
    """Read a record; None when it is missing, damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("version") != VERSION:
            return None
        record = cattrs.structure(document, ImageRecord)
    except (OSError, ValueError, cattrs.BaseValidationError):
        return None
    return record if record.format else None
