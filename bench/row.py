"""What a measurement comes to: one row of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen


@frozen
class Row:
    """A measured value and the bound it is held against."""

    name: str
    """What was measured."""
    value: float
    bound: float
    """The value passes when it is at most this (at least this, with `at_least`)."""
    unit: str
    """"×" for ratios, else "s", "ms", "MB", …"""
    detail: str = ""
    """The figures behind the value, with their spread."""
    at_least: bool = False
    samples: Mapping[str, Sequence[float]] = field(factory=dict)
    """Every single figure, by what it is; for the JSON file."""

    @property
    def passed(self) -> bool:
        """Whether the bound is kept."""
        if self.at_least:
            return self.value >= self.bound
        return self.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        """The row for the JSON file."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bound": self.bound,
            "at_least": self.at_least,
            "passed": self.passed,
            "detail": self.detail,
            "samples": {name: list(figures) for name, figures in self.samples.items()},
        }
