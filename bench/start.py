"""From RunPodSandbox to StartContainer's return, against the plain script."""

from bench.bench import Bench
from bench.row import Row
from bench.versus import AT_A_TIME, compare


def measure(bench: Bench) -> list[Row]:
    """Starting a pod in sequence, and with others at a time."""
    found = bench.once(compare)
    return [
        found.in_sequence.row("start of a pod, in sequence", lambda side: side.up),
        found.at_a_time.row(f"start of a pod, {AT_A_TIME} at a time", lambda side: side.up),
        found.at_a_time.row(f"slowest start of {AT_A_TIME}", lambda side: side.up, max),
    ]
