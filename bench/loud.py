"""Real guests that print all they can: what it takes the manager, and whether lines get lost.

Without KVM an emulated serial port takes a core for about 1 MB/s, so twenty guests print what the
machine carries, and the manager's processor time is stated for all of 20 MB/s. Their lines are
short, and the rate is that of their own bytes: in the log each line has a header of 38.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.bench import Bench
from bench.console import CORES, GUESTS, RATE
from bench.guest import counted_line
from bench.node import LOUD, Node, Pod, new_node
from bench.row import Row
from virtlet.console.cri_log import decode

_AT_A_TIME = 4


def measure(bench: Bench) -> list[Row]:
    """The manager's processor time, and logs in which a line is missing or wrong."""
    with new_node() as node:
        node.client.pull(node.manifest("any", LOUD).container.image.image)
        guests = bench.times(GUESTS, 4)
        bench.step(f"{guests} guests")
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            pods = list(threads.map(lambda n: node.up(f"loud{n}", LOUD)[0], range(guests)))
        time.sleep(1)
        row = _cores(node, pods, bench.times(20, 4))
        for pod in pods:
            node.client.stop(pod.vm, 0)
        wrong = [pod.log.parent.name for pod in pods if not _is_whole(pod.log)]
        total = sum(pod.log.stat().st_size for pod in pods)
    return [
        row,
        Row(
            name="logs of real guests in which a line is missing or wrong",
            value=len(wrong),
            bound=0.0,
            unit="",
            detail=f"of {guests} logs with {total / 1e6:.0f} MB {' '.join(wrong)}".rstrip(),
        ),
    ]


def _cores(node: Node, pods: Sequence[Pod], seconds: float) -> Row:
    used, before, started = _cpu_seconds(node.manager), _printed(node, pods), time.monotonic()
    time.sleep(seconds)
    rate = (_printed(node, pods) - before) / (time.monotonic() - started)
    cores = (_cpu_seconds(node.manager) - used) / (time.monotonic() - started)
    wanted = GUESTS * RATE
    return Row(
        name=f"manager, real guests, for {wanted / 1e6:.0f} MB/s",
        value=cores * wanted / rate,
        bound=CORES,
        unit="cores",
        detail=(f"{cores:.3f} cores at the {rate / 1e6:.2f} MB/s that {len(pods)} guests reached"),
    )


def _printed(node: Node, pods: Sequence[Pod]) -> int:
    """Bytes that the guests have printed so far."""
    consoles = node.playground.data_dir / "run" / "vm"
    return sum((consoles / pod.vm[:12] / "console.out").stat().st_size for pod in pods)


def _cpu_seconds(process: Path) -> float:
    """User and system time; source: proc_pid_stat(5), fields 14 and 15."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_whole(log: Path) -> bool:
    """Whether a log has every line that its guest counted, in order and once."""
    text = log.read_bytes()
    decoded = decode(text)
    first = decoded.payload.find(counted_line(1))
    *lines, last = decoded.payload[first:].split(b"\n")
    return (
        first >= 0
        and decoded.whole == len(text)
        and len(lines) > 1000
        and all(line + b"\n" == counted_line(n) for n, line in enumerate(lines, 1))
        and counted_line(len(lines) + 1).startswith(last)
    )
