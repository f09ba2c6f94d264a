"""Statistics of fifty VMs."""

from statistics import median

from bench.asking import spread
from bench.bench import Bench
from bench.fifty import look_at_fifty
from bench.row import Row

BOUND = 50.0
"""ms."""


def measure(bench: Bench) -> list[Row]:
    """ListContainerStats, asked again and again; the bound is for the median of that."""
    fifty = bench.once(look_at_fifty)
    return [
        Row(
            name=f"ListContainerStats for {fifty.pods} VMs",
            value=median(fifty.stats),
            bound=BOUND,
            unit="ms",
            detail=(
                f"{spread(fifty.stats)}, at most {max(fifty.stats):.1f} ms in "
                f"{len(fifty.stats)} calls; asked in the moment of the manager's start, while it "
                f"samples: {spread(fifty.first_stats)}; all VMs run"
            ),
            samples={"ms": fifty.stats, "in the moment of the start, ms": fifty.first_stats},
        ),
    ]
