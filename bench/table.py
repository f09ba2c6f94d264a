"""The table at the end."""

from collections.abc import Mapping, Sequence

from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from bench.row import Row


def show(rows: Sequence[Row], failures: Mapping[str, str], terminal: Terminal) -> None:
    """Print all rows, and the measurements that came to nothing."""
    table = Table(box=None, pad_edge=False)
    for title in ("measured", "value", "bound", "", "figures: median (middle half)"):
        table.add_column(title, justify="right" if title in ("value", "bound") else "left")
    for row in rows:
        sign = "≥" if row.at_least else "≤"
        table.add_row(
            row.name,
            f"{_number(row.value)} {row.unit}",
            f"{sign} {_number(row.bound)} {row.unit}",
            Text("pass", "green") if row.passed else Text("MISSED", "red"),
            Text(row.detail),
        )
    for name, problem in failures.items():
        table.add_row(name, "–", "–", Text("FAILED", "red"), Text(problem))
    terminal.print(table)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
