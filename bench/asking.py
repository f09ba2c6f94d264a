"""The calls that a kubelet makes again and again, timed."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from typing import TypeVar

from virtlet.cli.client import Client
from virtlet.cri import api_pb2 as cri

Name = TypeVar("Name")
Question = Callable[[], object]
WARM_UP = 30


def questions(client: Client) -> dict[str, Question]:
    """The four calls; those for one status go through all pods by turns."""
    pods = itertools.cycle([pod.id for pod in client.pods()])
    vms = itertools.cycle([vm.id for vm in client.containers()])
    runtime = client.runtime
    return {
        "ListPodSandbox": lambda: runtime.ListPodSandbox(cri.ListPodSandboxRequest()),
        "ListContainers": lambda: runtime.ListContainers(cri.ListContainersRequest()),
        "PodSandboxStatus": lambda: runtime.PodSandboxStatus(
            cri.PodSandboxStatusRequest(pod_sandbox_id=next(pods))
        ),
        "ContainerStatus": lambda: runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=next(vms))
        ),
    }


def milliseconds(question: Question) -> float:
    """How long one answer takes."""
    started = time.perf_counter()
    question()
    return 1000 * (time.perf_counter() - started)


def by_turns(sides: Mapping[Name, Question], count: int) -> dict[Name, Sequence[float]]:
    """Milliseconds of each side; every side is asked once in each turn.

    Whatever else the machine does meets all sides alike.
    """
    for question in sides.values():
        for _ in range(WARM_UP):
            question()
    found: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(count):
        for name, question in sides.items():
            found[name].append(milliseconds(question))
    return dict(found)


def spread(figures: Sequence[float]) -> str:
    """Median and the middle half of milliseconds, with two digits after the point."""
    low, middle, high = quantiles(figures, n=4, method="inclusive")
    return f"{middle:.2f} ms ({low:.2f}–{high:.2f})"
