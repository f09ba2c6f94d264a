"""The manager's resident memory, with pods and over many of them.

Growth is the slope of resident memory over pod cycles, by Theil and Sen, after a warm-up in which
threads, pools and the allocator's arenas reach their size. Threads and descriptors are counted too:
those leak in whole pieces, so not one may be left. A pool makes a thread whenever one call more
than ever before meets the others, so the warm-up has twice as many at a time.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from attrs import frozen

from bench.bench import Bench
from bench.figures import slope
from bench.node import Node, new_node
from bench.row import Row
from virtlet.cri import api_pb2 as cri

PODS = 20
BOUND = 95.0
"""MB of resident memory."""
AT_A_TIME = 4
WARM_UP = 300
"""Cycles until the heaps are as large as they get: they were trimmed soon after the start."""
CYCLES = 200
BLOCK = 20
"""Cycles between two looks."""
GROWTH_BOUND = 1.0
"""MB in 200 cycles: a page per cycle would be 0.8."""
_MB = 1000 * 1000


@frozen
class Look:
    """What the manager holds at one time."""

    rss: float
    """MB."""
    pss: float
    """MB: pages shared with other processes count in part."""
    threads: int
    descriptors: int


def measure(bench: Bench) -> list[Row]:
    """Memory with pods, and its growth; with pods again when the manager is an old one."""
    with new_node() as node:
        new = _held(bench, node, "new")
    with new_node() as node:
        growth = _growth(bench, node)
        cycles = bench.times(WARM_UP + CYCLES, 3 * BLOCK)
        old = _held(bench, node, f"after {cycles} pod cycles")
    return [new, old, *growth]


def _held(bench: Bench, node: Node, age: str) -> Row:
    looks = [look_at(node.manager)]
    for number in range(PODS):
        bench.step(f"pod {number + 1} of {PODS}")
        node.up(f"pod{number}")
        looks.append(look_at(node.manager))
    now = _settled(node)
    return Row(
        name=f"resident memory of the manager, {PODS} pods, {age}",
        value=now.rss,
        bound=BOUND,
        unit="MB",
        detail=(
            f"Pss {now.pss:.1f} MB; without pods {looks[0].rss:.1f} MB resident; "
            f"{now.threads} threads, {now.descriptors} descriptors"
        ),
        samples={"rss by number of pods": [look.rss for look in looks]},
    )


def _growth(bench: Bench, node: Node) -> list[Row]:
    names = itertools.count()
    warm_up, cycles = bench.times(WARM_UP, BLOCK), bench.times(CYCLES, 2 * BLOCK)
    new = _settled(node)
    _cycles(bench, node, names, warm_up, "warming up", at_a_time=2 * AT_A_TIME)
    _ask_for_images(node)
    looks = [_settled(node)]
    for done in range(0, cycles, BLOCK):
        _cycles(bench, node, names, BLOCK, f"{done} of {cycles} cycles", at_a_time=AT_A_TIME)
        looks.append(_settled(node))
    steps = [float(BLOCK * number) for number in range(len(looks))]
    first, last = looks[0], looks[-1]
    return [
        Row(
            name=f"growth of resident memory over {CYCLES} pod cycles",
            value=slope(steps, [look.rss for look in looks]) * CYCLES,
            bound=GROWTH_BOUND,
            unit="MB",
            detail=(
                f"from {first.rss:.1f} to {last.rss:.1f} MB in {cycles} cycles, {AT_A_TIME} at a "
                f"time; {new.rss:.1f} MB before the {warm_up} of warm-up"
            ),
            samples={"cycles": steps, "rss": [look.rss for look in looks]},
        ),
        Row(
            name="threads and descriptors left over by them",
            value=float(
                max(0, last.threads - first.threads) + max(0, last.descriptors - first.descriptors)
            ),
            bound=0.0,
            unit="",
            detail=(
                f"threads {first.threads} → {last.threads}, descriptors {first.descriptors} → "
                f"{last.descriptors}"
            ),
            samples={
                "threads": [float(look.threads) for look in looks],
                "descriptors": [float(look.descriptors) for look in looks],
            },
        ),
    ]


def _cycles(
    bench: Bench, node: Node, names: Iterator[int], count: int, where: str, *, at_a_time: int
) -> None:
    """Run, stop and remove pods; each VM runs for a moment."""
    done = itertools.count(1)
    guard = threading.Lock()

    def cycle(number: int) -> None:
        pod, _ = node.up(f"cycle{number}")
        node.down(pod)
        with guard:
            bench.step(f"{where}, {next(done)} of {count}")

    with ThreadPoolExecutor(at_a_time) as threads:
        list(threads.map(cycle, itertools.islice(names, count)))


def _ask_for_images(node: Node) -> None:
    """The one question of a cycle that has a pool of its own, and is over too soon to be met."""
    question = cri.ImageStatusRequest(image=node.manifest("any").container.image)
    with ThreadPoolExecutor(2 * AT_A_TIME) as threads:
        list(threads.map(lambda _: node.client.call("ImageStatus", question), range(CYCLES)))


def _settled(node: Node) -> Look:
    """The middle one of some looks while nothing is asked of the manager."""
    looks = []
    for _ in range(5):
        time.sleep(0.3)
        looks.append(look_at(node.manager))
    return Look(
        rss=median(look.rss for look in looks),
        pss=median(look.pss for look in looks),
        # A thread or descriptor of a call that ends just now is none that is left over.
        threads=min(look.threads for look in looks),
        descriptors=min(look.descriptors for look in looks),
    )


def look_at(process: Path) -> Look:
    """What a process holds now, by its directory below /proc."""
    return Look(
        rss=_kilobytes(process / "status", "VmRSS:") * 1024 / _MB,
        pss=_kilobytes(process / "smaps_rollup", "Pss:") * 1024 / _MB,
        threads=len(list((process / "task").iterdir())),
        descriptors=len(list((process / "fd").iterdir())),
    )


def _kilobytes(file: Path, key: str) -> int:
    with contextlib.suppress(StopIteration):
        line = next(line for line in file.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1])
    raise LookupError(f"{file} has no {key}")
