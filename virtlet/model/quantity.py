"""Kubernetes quantities.

Source: "Resource Quantities" of the Kubernetes API reference: a decimal number with an optional
suffix, binary (Ki … Ei), decimal (n, u, m, k … E) or an exponent (e3).
"""

import re
from decimal import ROUND_CEILING, Decimal

from virtlet.model.plain import quote

_BINARY = {s: Decimal(1024) ** n for n, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
}
_FORM = re.compile(
    r"([+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))(?:[eE]([+-]?\d{1,2})|([A-Za-z]{0,2}))",
    re.ASCII,
)


def parse_quantity(text: str) -> Decimal:
    """The number a quantity stands for, in its base unit.

    Raises:
        ValueError: the text is no quantity.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{quote(text)} is no quantity: write a number like 512Mi, 1.5Gi or 2G")
    number, exponent, suffix = match.groups()
    if exponent is not None:
        return Decimal(number) * Decimal(10) ** int(exponent)
    unit = _BINARY.get(suffix) or _DECIMAL.get(suffix)
    if unit is None:
        raise ValueError(
            f"{quote(text)} has the unknown suffix {suffix!r}: use Ki, Mi, Gi, k, M, G, …"
        )
    return Decimal(number) * unit


def parse_bytes(text: str) -> int:
    """A quantity as whole bytes, rounded up.

    Raises:
        ValueError: the text is no quantity, negative, or 2^63 and more.
    """
    value = parse_quantity(text).to_integral_value(rounding=ROUND_CEILING)
    if not 0 <= value < 2**63:
        raise ValueError(f"{quote(text)} is not between 0 and 2^63 bytes")
    return int(value)
