"""`make demo WARM=1`: pods that boot beside pods that start from a template."""

import contextlib
import json
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from attrs import evolve, frozen

from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest
from virtlet.cli.playground import Playground
from virtlet.cli.steps import Reporter, RunningPod, bring_up, take_down, wait_until
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns

COLD, WARM = "cold", "warm"
"""Handlers of the node."""
HANDLERS = {"": {}, COLD: {}, WARM: {"flavor": {"warm": True}}}
ANSWER_TIME = 120.0
"""Seconds that a guest may take to answer."""
_MIB = 1 << 20


class Quiet:
    """Shows no steps."""

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Nothing."""
        yield

    def note(self, text: str) -> None:
        """Nothing."""


@frozen
class Side:
    """What pods of one handler took."""

    seconds: Sequence[float]
    """From RunPodSandbox to the guest's answer under its own name, one after the other."""
    memory: Sequence[int]
    """Bytes of each emulator (PSS: what it shares is counted in part), while all of them run."""


def compare(
    client: Client, node: Playground, manifest: PodManifest, pods: int, report: Reporter
) -> None:
    """Start pods of both handlers, and show what they take; nothing of them is left."""
    with report.step(f"start {pods} pods that boot"):
        cold = _run(client, node, manifest, COLD, pods)
    with report.step("boot another one, while a template is made"):
        first = up(client, node, manifest, WARM, "first")
        wait_until(lambda: has_template(client), ANSWER_TIME, "a template")
        take_down(client, first.pod_id, 0, Quiet())
    with report.step(f"start {pods} pods from the template"):
        warm = _run(client, node, manifest, WARM, pods)
    for line in table(cold, warm):
        report.note(line)


def table(cold: Side, warm: Side) -> list[str]:
    """Both sides, line by line."""
    lines = [f"  {'':<24}{COLD:>10}{WARM:>10}"]
    pairs = zip(cold.seconds, warm.seconds, strict=True)
    for number, (slow, quick) in enumerate(pairs, 1):
        lines.append(f"  pod {number:<20}{slow:>8.2f} s{quick:>8.2f} s")
    slow, quick = median(cold.seconds), median(warm.seconds)
    lines.append(
        f"  {'median to the answer':<24}{slow:>8.2f} s{quick:>8.2f} s  ×{quick / slow:.2f}"
    )
    for name, each in (("memory of a VM", median), ("memory of all", sum)):
        much, little = (each(side.memory) / _MIB for side in (cold, warm))
        lines.append(
            f"  {name:<24}{much:>6.0f} MiB{little:>6.0f} MiB  ×{little / max(much, 1):.2f}"
        )
    return lines


def _run(client: Client, node: Playground, manifest: PodManifest, handler: str, pods: int) -> Side:
    running, seconds = [], []
    for number in range(1, pods + 1):
        began = time.monotonic()
        running.append(up(client, node, manifest, handler, str(number)))
        seconds.append(time.monotonic() - began)
    memory = [emulator_memory(pod.container_id) for pod in running]
    for pod in running:
        take_down(client, pod.pod_id, 0, Quiet())
    return Side(seconds, memory)


def up(
    client: Client, node: Playground, manifest: PodManifest, handler: str, name: str
) -> RunningPod:
    """Bring a pod up, and wait until it answers under its name."""
    config = cri.PodSandboxConfig()
    config.CopyFrom(manifest.pod)
    config.metadata.name = config.hostname = f"{handler}-{name}"
    config.metadata.uid = str(uuid.uuid4())
    config.log_directory = str(node.log_root / config.metadata.name)
    pod = bring_up(client, evolve(manifest, pod=config, handler=handler), Quiet())
    wait_until(
        lambda: config.hostname in netns.inside(node.netns, lambda: _get(pod.address)),
        ANSWER_TIME,
        f"answer of {config.hostname} at http://{pod.address}/",
    )
    return pod


def _get(address: str) -> str:
    """What a guest answers; nothing while it does not."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/", timeout=2) as r:
        text: str = r.read(2000).decode(errors="replace")
        return text
    return ""


def has_template(client: Client) -> bool:
    """Whether there is a template.

    Raises:
        AssertionError: it could not be made; says why.
    """
    status = client.call("Status", cri.StatusRequest(verbose=True))
    known = json.loads(status.info["templates"])
    failed = [one["reason"] for one in known if one["state"] == "failed"]
    assert not failed, failed
    return any(one["state"] == "ready" for one in known)


def emulator_memory(vm_id: str) -> int:
    """PSS of a VM's emulator, in bytes."""
    name = str(uuid.UUID(vm_id)).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name in (process / "cmdline").read_bytes():
                lines = (process / "smaps_rollup").read_text().splitlines()
                return 1024 * int(
                    next(line for line in lines if line.startswith("Pss:")).split()[1]
                )
    raise LookupError(f"the emulator of VM {vm_id} is gone")
