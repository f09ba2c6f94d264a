"""Lists and statuses with fifty pods, against containerd."""

from bench.asking import spread
from bench.bench import Bench
from bench.fifty import look_at_fifty
from bench.figures import ratio, ratio_interval
from bench.row import Row

BOUND = 1.5


def measure(bench: Bench) -> list[Row]:
    """All four calls."""
    fifty = bench.once(look_at_fifty)
    rows = []
    for call, sides in fifty.calls.items():
        ours, theirs = sides["ours"], sides["containerd"]
        low, high = ratio_interval(ours, theirs)
        rows.append(
            Row(
                name=f"{call} with {fifty.pods} pods against containerd",
                value=ratio(ours, theirs),
                bound=BOUND,
                unit="×",
                detail=(
                    f"95 %: {low:.2f}–{high:.2f}; ours {spread(ours)}, containerd "
                    f"{spread(theirs)}; {len(ours)} calls each; all VMs run"
                ),
                samples={f"{side} ms": figures for side, figures in sides.items()},
            )
        )
    return rows
