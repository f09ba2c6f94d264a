"""Writing documents that are JSON and YAML at once.

JSON is YAML but for a few corners: characters YAML forbids or takes for line ends, characters
outside the basic plane in escapes, and exponents without a point. Here they are written so that
both readers see the same.
"""

import json
import re
from typing import Any

_RISKY = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def dump(value: Any) -> str:
    """One line of text, for plain data."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        number = repr(value)
        return number if "." in number else number.replace("e", ".0e")
    return json.dumps(value)


def _text(value: str) -> str:
    return _RISKY.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))
