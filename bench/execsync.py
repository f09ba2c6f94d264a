"""ExecSync of `true` against the agent's bare requests: guest-exec and guest-exec-status.

Two guests are asked by turns, one through the manager and one on its agent's socket, which serves
one client at a time. Half way they change places, so that it does not matter which guest is which.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.asking import by_turns, spread
from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio
from bench.row import Row
from tests.tiny.tiny_guest import JsonSocket
from virtlet.cli.client import Client
from virtlet.cli.manifest import read_manifest
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

BOUND = 1.3
_ROOT = Path(__file__).parents[1]
_TINY = _ROOT / "build" / "tiny.qcow2"
_MANIFEST = _ROOT / "examples" / "pods" / "tiny.yaml"
_BOOT = 120
"""Seconds; a loaded machine without KVM is slow."""
_BLOCK = 10
"""Turns whose medians are one pair."""


def measure(bench: Bench) -> list[Row]:
    """The ratio, taken within blocks of turns."""
    ours: list[float] = []
    bare: list[float] = []
    with Playground({"tiny": _TINY}) as node, node.client() as client:
        bench.step("two guests boot")
        guests = [_guest(node, client, name) for name in ("one", "other")]
        for guest in guests:
            _true(client, guest)
        for served, asked in (guests, guests[::-1]):
            bench.step(f"in turns, {len(ours)} done")
            # Else the manager still holds the other's socket.
            node.stop()
            node.start()
            client.call("Version", cri.VersionRequest())
            with _agent(node, asked) as agent:
                sides = {
                    "ours": lambda vm=served: _true(client, vm),
                    "bare": lambda agent=agent: _bare_true(agent),
                }
                found = by_turns(sides, bench.times(150, 20))
            ours += found["ours"]
            bare += found["bare"]
    pairs = [
        (sum(mine), sum(theirs)) for mine, theirs in zip(_blocks(ours), _blocks(bare), strict=True)
    ]
    low, high = paired_interval(pairs)
    return [
        Row(
            name="ExecSync of `true` against the bare agent requests",
            value=paired_ratio(pairs),
            bound=BOUND,
            unit="×",
            detail=(
                f"95 %: {low:.2f}–{high:.2f}; ours {spread(ours)}, bare {spread(bare)}; "
                f"{len(ours)} calls each, emulated guests"
            ),
            samples={"ours ms": ours, "bare ms": bare},
        )
    ]


def _guest(node: Playground, client: Client, name: str) -> str:
    """Start the VM of a pod; returns its id."""
    manifest = read_manifest(_MANIFEST, node.log_root)
    pod = manifest.pod
    pod.metadata.name = pod.hostname = name
    pod.metadata.uid = f"uid-{name}"
    pod.log_directory = str(node.log_root / name)
    pod_id = client.run_pod(pod)
    client.pull(manifest.container.image.image)
    vm_id = client.create(pod_id, manifest.container, pod)
    client.start(vm_id)
    return vm_id


def _true(client: Client, vm_id: str) -> None:
    request = cri.ExecSyncRequest(container_id=vm_id, cmd=["true"], timeout=_BOOT)
    reply = client.call("ExecSync", request, timeout=_BOOT + 10)
    assert reply.exit_code == 0


def _bare_true(agent: JsonSocket) -> None:
    pid = agent.ask("guest-exec", path="true", **{"capture-output": True})["pid"]
    while not agent.ask("guest-exec-status", pid=pid)["exited"]:
        time.sleep(0.001)


@contextmanager
def _agent(node: Playground, vm_id: str) -> Iterator[JsonSocket]:
    """A connection to an agent that nobody else has."""
    with JsonSocket(node.data_dir / "run" / "vm" / vm_id[:12] / "agent.sock") as agent:
        agent.ask("guest-ping")
        yield agent


def _blocks(figures: list[float]) -> list[tuple[float, ...]]:
    return [tuple(figures[at : at + _BLOCK]) for at in range(0, len(figures), _BLOCK)]
