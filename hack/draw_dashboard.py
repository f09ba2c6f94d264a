"""Draw the dashboard's panels; tests/e2e/test_metrics.py makes docs/pictures/dashboard.svg by it.

It is no screenshot of Grafana: titles, places, units, legends and queries are the dashboard's,
the figures a Prometheus', and the drawing is matplotlib's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator

from hack.document_dashboard import WIDTH, dashboard

_CELL = 0.5, 0.26
"""Width and height of a cell of the dashboard's grid, in inches."""
_MARGINS = 1.5, 0.2, 1.1, 2.2
"""Left, right, above and below a plot, in cells."""
_LEGEND = 6
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dashboard",
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
}


@frozen
class Series:
    """One line of a plot."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]
    """Seconds and values."""


def draw(ask: Callable[[str], Sequence[Series]], interval: str, file: Path) -> None:
    """Write the dashboard as an SVG.

    Args:
        ask: what Prometheus has for a query over the time that is shown.
        interval: over which rates are.
    """
    panels = dashboard()["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH * _CELL[0], rows * _CELL[1]))
        for panel in panels:
            place = panel["gridPos"]
            if panel["type"] == "row":
                at = place["x"] / WIDTH + 0.005, 1 - (place["y"] + 0.8) / rows
                figure.text(*at, panel["title"], fontsize=10, fontweight="bold")
                continue
            left, right, above, below = _MARGINS
            box = (
                (place["x"] + left) / WIDTH,
                1 - (place["y"] + place["h"] - below) / rows,
                (place["w"] - left - right) / WIDTH,
                (place["h"] - above - below) / rows,
            )
            _plot(figure.add_axes(box), panel, ask, interval)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _plot(
    axes: Axes, panel: dict[str, Any], ask: Callable[[str], Sequence[Series]], interval: str
) -> None:
    axes.set_title(panel["title"], loc="left")
    for target in panel["targets"]:
        query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", interval)
        for series in ask(query):
            times, values = zip(*series.points, strict=True)
            axes.plot(times, values, label=_legend(target["legendFormat"], series.labels))
    if not axes.lines:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", color="gray")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_formatter(panel["fieldConfig"]["defaults"]["unit"]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    if len(names) > _LEGEND:
        names[_LEGEND - 1 :] = [f"and {len(names) - _LEGEND + 1} more"]
    axes.legend(
        handles[: len(names)],
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=3,
        frameon=False,
        fontsize=6,
        columnspacing=1,
        handlelength=1,
    )


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), template)


def _formatter(unit: str) -> Formatter:
    """Of Grafana's units, those that the dashboard has."""
    match unit:
        case "bytes":
            return FuncFormatter(lambda value, _: _binary(value))
        case "short":
            return EngFormatter(sep="")
        case _:
            return EngFormatter({"s": "s", "ops": "ops/s", "Bps": "B/s"}[unit])


def _binary(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
