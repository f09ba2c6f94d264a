"""A Debian that starts from a template, against one that boots: time and memory.

Its image is as any other cloud image, so a template of it is held before cloud-init's first stage,
and each clone runs a first cloud-init of its own. Both kinds start on one node, by turns.
"""

import contextlib
import json
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep

import yaml
from attrs import evolve, frozen

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio, spread
from bench.row import Row
from bench.warm import memory_row
from virtlet.cli import warm_demo
from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cli.playground import Playground
from virtlet.cli.steps import RunningPod, bring_up, take_down, wait_until
from virtlet.cli.warm_demo import COLD, WARM, Quiet
from virtlet.core.paths import Paths
from virtlet.cri import api_pb2 as cri

ROOT = Path(__file__).parents[1]
DEBIAN = ROOT / "build" / "debian.qcow2"
ROUNDS = 5
CONFIGURED_BOUND, ANSWER_BOUND, MEMORY_BOUND = 0.30, 0.08, 0.15
"""Of what a VM takes that boots."""
MEMORY_PODS = 3
_QUIET = 30.0
"""Seconds that guests get to become idle."""
_PATIENCE = 600.0


@frozen
class _Debian:
    """A node with a template of a Debian of 512 MiB."""

    node: Playground
    client: Client
    manifest: PodManifest

    def up(self, handler: str, name: str) -> RunningPod:
        """Start a pod; a clone's agent has answered then."""
        manifest = evolve(self.manifest, handler=handler)
        manifest.pod.metadata.name = manifest.pod.hostname = f"{handler}-{name}"
        manifest.pod.metadata.uid = str(uuid.uuid4())
        return bring_up(self.client, manifest, Quiet())

    def answered(self, pod: RunningPod) -> None:
        """Wait for the agent of a VM that boots: nobody else has asked it yet."""
        channel = Paths(self.node.data_dir).agent_socket(pod.container_id)
        wait_until(lambda: _answers(channel), _PATIENCE, "the agent")

    def configured(self, pod: RunningPod) -> None:
        """Wait until cloud-init is done, for which commands wait."""
        wait_until(lambda: self._runs(pod), _PATIENCE, "the end of cloud-init")

    def _runs(self, pod: RunningPod) -> bool:
        request = cri.ExecSyncRequest(
            container_id=pod.container_id,
            cmd=["test", "-e", "/run/cloud-init/result.json"],
            timeout=int(_PATIENCE),
        )
        # The client's own patience is shorter than a guest that boots takes.
        code: int = self.client.call("ExecSync", request, timeout=_PATIENCE).exit_code
        return code == 0

    def down(self, pod: RunningPod) -> None:
        """Remove it."""
        take_down(self.client, pod.pod_id, 0, Quiet())


def measure(bench: Bench) -> list[Row]:
    """Time to the agent's answer and to cloud-init's end by turns, and memory."""
    with _debian_node(bench) as debian:
        return [*_times(bench, debian), _memory(bench, debian)]


@contextmanager
def _debian_node(bench: Bench) -> Iterator[_Debian]:
    bench.step("image")
    subprocess.run([ROOT / "images" / "debian" / "build.sh", DEBIAN], check=True)
    # A distribution runs more code than the default buffer holds.
    quick = {"translation_buffer": "192Mi"}
    handlers = {COLD: {"flavor": quick}, WARM: {"flavor": quick | {"warm": True}}}
    document = yaml.safe_load((ROOT / "examples" / "pods" / "tiny.yaml").read_text())
    (container,) = document["spec"]["containers"]
    container["image"] = "virtlet.cloud/debian"
    container["resources"]["limits"]["memory"] = "512Mi"
    with (
        Playground({"debian": DEBIAN}, settings={"handlers": handlers}) as node,
        node.client() as client,
    ):
        debian = _Debian(node, client, pod_manifest(document, node.log_root))
        bench.step("template")
        debian.down(debian.up(WARM, "first"))
        wait_until(lambda: warm_demo.has_template(client), _PATIENCE, "a template")
        yield debian


def _answers(channel: Path) -> bool:
    """Whether an agent answers at a VM's channel."""
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        connection.connect(str(channel))
        connection.sendall(b'{"execute": "guest-ping"}\n')
        return "return" in json.loads(connection.recv(4096))
    return False


def _times(bench: Bench, debian: _Debian) -> Iterator[Row]:
    answers: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []
    rounds = bench.times(ROUNDS, 1)
    for number in range(rounds):
        bench.step(f"to cloud-init's end, round {number + 1} of {rounds}")
        answer, end = {}, {}
        for handler in (COLD, WARM) if number % 2 else (WARM, COLD):
            began = perf_counter()
            pod = debian.up(handler, str(number))
            if handler == COLD:
                debian.answered(pod)
            answer[handler] = perf_counter() - began
            debian.configured(pod)
            end[handler] = perf_counter() - began
            debian.down(pod)
        answers.append((answer[WARM], answer[COLD]))
        ends.append((end[WARM], end[COLD]))
    for what, pairs, bound in (
        ("the agent's first answer", answers, ANSWER_BOUND),
        ("cloud-init's end", ends, CONFIGURED_BOUND),
    ):
        low, high = paired_interval(pairs)
        ours, cold = ([pair[side] for pair in pairs] for side in (0, 1))
        yield Row(
            name=f"Debian to {what}, warm",
            value=paired_ratio(pairs),
            bound=bound,
            unit="×",
            detail=f"95 %: {low:.2f}–{high:.2f}; warm {spread(ours)}, cold {spread(cold)}",
            samples={"warm": ours, "cold": cold},
        )


def _memory(bench: Bench, debian: _Debian) -> Row:
    pods = bench.times(MEMORY_PODS, 1)
    found: dict[str, list[int]] = {}
    for handler in (COLD, WARM):
        bench.step(f"memory of {pods} pods, {handler}")
        running = [debian.up(handler, f"memory-{number}") for number in range(pods)]
        for pod in running:
            debian.configured(pod)
        sleep(_QUIET)
        found[handler] = [warm_demo.emulator_memory(pod.container_id) for pod in running]
        for pod in running:
            debian.down(pod)
    return memory_row("Debian", found, MEMORY_BOUND)
