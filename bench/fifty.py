"""Fifty pods whose VMs run, beside containerd's: what it takes to be asked about them.

The guests are the benchmark's own, which halt: fifty of them take memory, but no processor.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from attrs import define, field

from bench.asking import by_turns, milliseconds, questions
from bench.bench import Bench
from bench.busybox import busybox_pods
from bench.node import Node, new_node
from virtlet.cli.client import Client
from virtlet.cri import api_pb2 as cri

PODS = 50
_AT_A_TIME = 4
_TURNS = 2500
"""Some seven seconds: a virtual machine's speed changes from one second to the next."""
STATS_PAUSE = 0.1
"""Seconds between two questions for statistics, so that they meet the sampler in all its moods."""


@define
class Fifty:
    """What was found; all figures are milliseconds."""

    pods: int
    calls: dict[str, dict[str, Sequence[float]]] = field(factory=dict)
    """Call to the figures of "ours" and "containerd"."""
    stats: list[float] = field(factory=list)
    """ListContainerStats, asked again and again."""
    first_stats: list[float] = field(factory=list)
    """ListContainerStats, the first after the manager's start: nothing is sampled yet."""


def look_at_fifty(bench: Bench) -> Fifty:
    """Bring all pods up, and ask."""
    found = Fifty(bench.times(PODS, 6))
    with new_node() as node:
        _bring_up(bench, node, found.pods)
        with busybox_pods(bench, found.pods) as theirs:
            _lists(bench, node.client, theirs, found)
        _statistics(bench, node, found)
    return found


def _bring_up(bench: Bench, node: Node, count: int) -> None:
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        started = threads.map(node.up, (f"pod{number}" for number in range(count)))
        for made, (pod, _) in enumerate(started, 1):
            bench.step(f"pod {made} of {count}")
            node.wait_for_greeting(pod)


def _lists(bench: Bench, ours: Client, theirs: Client, found: Fifty) -> None:
    for client in (ours, theirs):
        states = [vm.state for vm in client.containers()]
        assert len(client.pods()) == found.pods
        assert states == [cri.CONTAINER_RUNNING] * found.pods
    # All calls within each turn: the seconds that it takes meet every call with the same machine.
    bench.step("lists and statuses, in turns")
    sides = {"ours": questions(ours), "containerd": questions(theirs)}
    asked = {(call, side): sides[side][call] for call in sides["ours"] for side in sides}
    for (call, side), figures in by_turns(asked, bench.times(_TURNS, 50)).items():
        found.calls.setdefault(call, {})[side] = figures


def _statistics(bench: Bench, node: Node, found: Fifty) -> None:
    def question() -> None:
        reply = node.client.call("ListContainerStats", cri.ListContainerStatsRequest())
        measured = [item for item in reply.stats if item.memory.rss_bytes.value > 0]
        assert len(measured) == found.pods, f"{len(measured)} VMs with figures"

    for number in range(bench.times(4, 2)):
        bench.step(f"statistics after start {number + 1}")
        node.playground.stop()
        node.playground.start()
        # The channel has lost its connection; that it is made again is not what is measured.
        node.client.call("Version", cri.VersionRequest())
        found.first_stats.append(milliseconds(question))
        for _ in range(bench.times(60, 10)):
            time.sleep(STATS_PAUSE)
            found.stats.append(milliseconds(question))
