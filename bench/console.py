"""Twenty guests that print 1 MB/s each: what the log writer takes, and whether it loses anything.

A process writes to the consoles' files as the emulators would: emulated guests cannot print that
much on a machine that has no KVM. What real guests print is measured by `loud`.
"""

import json
import subprocess
import sys
import tempfile
from statistics import median

from bench.bench import Bench
from bench.row import Row

GUESTS = 20
RATE = 1_000_000
"""Bytes per second of each guest."""
CORES = 1.0
_WRITER = "tests.console.loaded_writer"


def measure(bench: Bench) -> list[Row]:
    """Processor time of the writer, and logs that are not what their guest printed."""
    seconds, count = bench.times(6, 2), bench.times(3, 2)
    runs = []
    for number in range(count):
        bench.step(f"{number + 1} of {count}")
        runs.append(_run(seconds))
    printed = [run["bytes_per_second"] / 1e6 for run in runs]
    # What it would take at the full rate, where the machine was too busy to print that much.
    wanted = GUESTS * RATE / 1e6
    cores = [
        run["cores"] * max(1.0, wanted / rate) for run, rate in zip(runs, printed, strict=True)
    ]
    how = f"{count} runs of {seconds} s, {min(printed):.1f} to {max(printed):.1f} MB/s printed"
    return [
        Row(
            name=f"log writer, {GUESTS} guests that print 1 MB/s each",
            value=median(cores),
            bound=CORES,
            unit="cores",
            detail=f"{min(cores):.2f} to {max(cores):.2f} cores; {how}, by a process",
            samples={"cores": cores, "MB/s": printed},
        ),
        Row(
            name="logs in which a byte is missing or wrong",
            value=sum(run["wrong_logs"] for run in runs),
            bound=0.0,
            unit="",
            detail=f"of {GUESTS * count} logs with {sum(printed) * seconds:.0f} MB",
        ),
    ]


def _run(seconds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="vlbench-", dir="/var/tmp") as directory:
        argv = [sys.executable, "-m", _WRITER, directory, str(GUESTS), str(RATE), str(seconds)]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=60 + 10 * seconds)
    result: dict[str, float] = json.loads(done.stdout)
    return result
