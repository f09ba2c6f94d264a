#!/usr/bin/env python3
"""Draw what starts from a template take, docs/pictures/snapshots.svg, from the benchmark's figures.

    python -m bench --only warm --json build/warm.json
    python -m bench --only warm_debian --json build/debian.json
    hack/draw_snapshots.py build/warm.json build/debian.json

Each bar is a median, with a line from the least to the greatest figure.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "snapshots.svg"
TIMES = {
    "tiny guest to HTTP under its own name, warm": "tiny guest,\nto HTTP",
    "Debian to the agent's first answer, warm": "Debian,\nto the agent",
    "Debian to cloud-init's end, warm": "Debian, to\ncloud-init's end",
}
MEMORY = {
    "PSS of an idle clone of the tiny guest": "tiny guest",
    "PSS of an idle clone of Debian": "Debian,\n512 MiB",
}
"""Rows of the benchmark to what they are in the picture."""
_KINDS = {"cold": ("boots", "#9aa5b1"), "warm": ("from a template", "#2f7d4f")}
_BAR = 0.38
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snapshots",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Samples = Mapping[str, Sequence[float]]


def draw(found: Mapping[str, Samples], file: Path) -> None:
    """Write the picture as an SVG.

    Args:
        found: the benchmark's rows, by name: seconds or MiB, `cold` and `warm`.
        file: where to.

    Raises:
        KeyError: a row is missing.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        times, memory = figure.subplots(1, 2, width_ratios=(len(TIMES), len(MEMORY)))
        _bars(times, "Start of a pod, s", [(title, found[row]) for row, title in TIMES.items()])
        _bars(memory, "Memory of the node, MiB", [(t, found[row]) for row, t in MEMORY.items()])
        memory.legend(frameon=False, loc="upper left")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _bars(axes: Axes, title: str, groups: Sequence[tuple[str, Samples]]) -> None:
    axes.set_title(title, loc="left")
    for side, (kind, (label, color)) in enumerate(_KINDS.items()):
        samples = [found[kind] for _, found in groups]
        heights = [median(each) for each in samples]
        spread = [
            [height - min(each) for height, each in zip(heights, samples, strict=True)],
            [max(each) - height for height, each in zip(heights, samples, strict=True)],
        ]
        places = [number + (side - 0.5) * _BAR for number in range(len(groups))]
        bars = axes.bar(places, heights, _BAR, label=label, color=color, yerr=spread)
        axes.bar_label(bars, labels=[f"{height:.3g}" for height in heights], padding=2)
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])


def rows(files: Sequence[Path]) -> Mapping[str, Samples]:
    """The rows of the benchmark's documents; of two of one name the later file's."""
    documents = [json.loads(file.read_text()) for file in files]
    return {row["name"]: row["samples"] for document in documents for row in document["rows"]}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    draw(rows([Path(name) for name in sys.argv[1:]]), PICTURE)
