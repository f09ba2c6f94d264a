"""VMs that start from a template, against those that boot: time, memory, and many of them.

The guest is the tiny one, which boots; both kinds start on one node, by turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from attrs import frozen

from bench.asking import Question, by_turns, questions
from bench.asking import spread as spread_of_calls
from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, ratio, ratio_interval, spread
from bench.memory import look_at
from bench.row import Row
from virtlet.cli import warm_demo
from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest, read_manifest
from virtlet.cli.playground import Playground
from virtlet.cli.steps import RunningPod, take_down, wait_until
from virtlet.cli.warm_demo import COLD, WARM, Quiet
from virtlet.cri import api_pb2 as cri

ROOT = Path(__file__).parents[1]
TINY = ROOT / "build" / "tiny.qcow2"
ROUNDS = 12
BOUND = 0.20
"""Of the time that a VM takes which boots."""
MEMORY_PODS = 5
MEMORY_BOUND = 0.40
"""Of the memory that it takes. Without KVM half of a clone's is code that QEMU has translated,
which no two emulators share."""
FEW, MANY = 10, 110
CALL_BOUND = 1.25
CALLS = ("PodSandboxStatus", "ContainerStatus", "ExecSync")
MANAGER_BOUND = 120.0
"""MB of resident memory."""
_TURNS = 300
_QUIET = 3.0
"""Seconds that guests get to become idle."""


@frozen
class _Warm:
    """A node with a template of the tiny guest."""

    node: Playground
    client: Client
    manifest: PodManifest

    def up(self, handler: str, name: str) -> RunningPod:
        """Bring a pod up until it answers under its own name."""
        return warm_demo.up(self.client, self.node, self.manifest, handler, name)

    def down(self, pod: RunningPod) -> None:
        """Remove it."""
        take_down(self.client, pod.pod_id, 0, Quiet())


def measure(bench: Bench) -> list[Row]:
    """Time to the first answer and memory by turns; calls with few and many clones."""
    with _warm_node() as warm:
        rows = [_time(bench, warm), _memory(bench, warm)]
        rows += _density(bench, warm)
    return rows


@contextmanager
def _warm_node() -> Iterator[_Warm]:
    settings = {"handlers": warm_demo.HANDLERS}
    with Playground({"tiny": TINY}, settings=settings) as node, node.client() as client:
        manifest = read_manifest(ROOT / "examples" / "pods" / "tiny.yaml", node.log_root)
        warm = _Warm(node, client, manifest)
        first = warm.up(WARM, "first")
        wait_until(lambda: warm_demo.has_template(client), 300, "a template")
        warm.down(first)
        yield warm


def _time(bench: Bench, warm: _Warm) -> Row:
    pairs: list[tuple[float, float]] = []
    rounds = bench.times(ROUNDS, 2)
    for number in range(rounds):
        bench.step(f"to the guest's answer, round {number + 1} of {rounds}")
        took = {}
        for handler in (COLD, WARM) if number % 2 else (WARM, COLD):
            began = perf_counter()
            pod = warm.up(handler, str(number))
            took[handler] = perf_counter() - began
            warm.down(pod)
        pairs.append((took[WARM], took[COLD]))
    low, high = paired_interval(pairs)
    ours, cold = ([pair[side] for pair in pairs] for side in (0, 1))
    return Row(
        name="tiny guest to HTTP under its own name, warm",
        value=paired_ratio(pairs),
        bound=BOUND,
        unit="×",
        detail=f"95 %: {low:.2f}–{high:.2f}; warm {spread(ours)}, cold {spread(cold)}",
        samples={"warm": ours, "cold": cold},
    )


def _memory(bench: Bench, warm: _Warm) -> Row:
    pods = bench.times(MEMORY_PODS, 2)
    found: dict[str, list[int]] = {}
    for handler in (COLD, WARM):
        bench.step(f"memory of {pods} pods, {handler}")
        running = [warm.up(handler, str(number)) for number in range(pods)]
        sleep(_QUIET)
        found[handler] = [warm_demo.emulator_memory(pod.container_id) for pod in running]
        for pod in running:
            warm.down(pod)
    return memory_row("the tiny guest", found, MEMORY_BOUND)


def memory_row(guest: str, found: Mapping[str, Sequence[int]], bound: float) -> Row:
    """The memory of clones against that of guests that booted.

    Args:
        guest: what it is.
        found: bytes of each emulator, by COLD and WARM.
        bound: of the ratio.
    """
    sizes = {name: [size / (1 << 20) for size in each] for name, each in found.items()}
    return Row(
        name=f"PSS of an idle clone of {guest}",
        value=ratio(sizes[WARM], sizes[COLD]),
        bound=bound,
        unit="×",
        detail=(
            f"{median(sizes[WARM]):.0f} MiB warm, {median(sizes[COLD]):.0f} MiB cold; "
            f"{len(sizes[WARM])} of each"
        ),
        samples=sizes,
    )


def _density(bench: Bench, many: _Warm) -> Iterator[Row]:
    """Calls with few and with many idle clones, by turns on two nodes, as long as they are held."""
    few, most = bench.times(FEW, 2), bench.times(MANY, 6)
    with _warm_node() as other:
        for warm, count in ((other, few), (many, most)):
            for number in range(count):
                bench.step(f"clone {number + 1} of {count}")
                warm.up(WARM, f"many-{number}")
        sleep(_QUIET)
        sides = {few: _calls(other.client), most: _calls(many.client)}
        asked: dict[tuple[str, int], Question] = {
            (call, side): sides[side][call] for call in CALLS for side in sides
        }
        found: dict[tuple[str, int], list[float]] = {name: [] for name in asked}
        began = perf_counter()
        while (held := perf_counter() - began) < bench.held or not found["ExecSync", most]:
            bench.step(
                f"calls with few and many clones, in turns, {held:.0f} of {bench.held:.0f} s"
            )
            for name, took in by_turns(asked, bench.times(_TURNS, 3)).items():
                found[name] += took
        manager = look_at(Path(f"/proc/{_pid(many.node)}"))
        memory = [warm_demo.emulator_memory(vm.id) / (1 << 20) for vm in many.client.containers()]
        assert len(memory) == most
    for call in CALLS:
        ours, theirs = found[call, most], found[call, few]
        low, high = ratio_interval(ours, theirs)
        yield Row(
            name=f"{call} with {most} clones, against {few}",
            value=ratio(ours, theirs),
            bound=CALL_BOUND,
            unit="×",
            detail=(
                f"95 %: {low:.2f}–{high:.2f}; {spread_of_calls(ours)} and "
                f"{spread_of_calls(theirs)}; held for {held:.0f} s"
            ),
            samples={f"with {most}, ms": ours, f"with {few}, ms": theirs},
        )
    yield Row(
        name=f"resident memory of the manager, {most} clones",
        value=manager.rss,
        bound=MANAGER_BOUND,
        unit="MB",
        detail=(
            f"Pss {manager.pss:.1f} MB; {manager.threads} threads; a clone's PSS "
            f"{median(memory):.0f} MiB"
        ),
    )


def _calls(client: Client) -> Mapping[str, Question]:
    """What a kubelet asks of one pod; a command in one guest after the other."""
    vms = cycle([vm.id for vm in client.containers()])
    return {
        **questions(client),
        "ExecSync": lambda: client.call(
            "ExecSync", cri.ExecSyncRequest(container_id=next(vms), cmd=["true"], timeout=60)
        ),
    }


def _pid(node: Playground) -> int:
    assert node.process is not None
    return node.process.pid
