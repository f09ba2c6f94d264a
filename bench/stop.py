"""From StopContainer (without grace) to RemovePodSandbox's return, against the plain script."""

from bench.bench import Bench
from bench.row import Row
from bench.versus import AT_A_TIME, compare


def measure(bench: Bench) -> list[Row]:
    """Stopping and removing a pod in sequence, and with others at a time."""
    found = bench.once(compare)
    return [
        found.in_sequence.row("stop and removal of a pod, in sequence", lambda side: side.down),
        found.at_a_time.row(
            f"stop and removal of a pod, {AT_A_TIME} at a time", lambda side: side.down
        ),
        found.at_a_time.row(
            f"slowest stop and removal of {AT_A_TIME}", lambda side: side.down, max
        ),
    ]
