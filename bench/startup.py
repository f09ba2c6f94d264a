"""From the start of `virtlet serve` to its first answer."""

from statistics import median

from bench.bench import Bench
from bench.figures import spread
from bench.node import Node, new_node
from bench.row import Row

PODS = 20
BOUND = 1.0


def measure(bench: Bench) -> list[Row]:
    """Start-up of a manager that has run here before: without pods, and with VMs that run."""
    with new_node() as node:
        empty = _restarts(bench, node, "without pods")
        for number in range(PODS):
            bench.step(f"pod {number + 1} of {PODS}")
            node.up(f"pod{number}")
        busy = _restarts(bench, node, f"with {PODS} VMs")
    return [
        _row("start-up of the manager, without pods", empty),
        _row(f"start-up of the manager, with {PODS} VMs that run", busy),
    ]


def _restarts(bench: Bench, node: Node, how: str) -> list[float]:
    seconds = []
    count = bench.times(10, 2)
    for number in range(count):
        bench.step(f"{how}, {number + 1} of {count}")
        node.playground.stop()
        seconds.append(node.playground.start())
    return seconds


def _row(name: str, seconds: list[float]) -> Row:
    return Row(
        name=name,
        value=median(seconds),
        bound=BOUND,
        unit="s",
        detail=f"{spread(seconds)}, {len(seconds)} starts",
        samples={"seconds": seconds},
    )
