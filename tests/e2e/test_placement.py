"""A VM with CPUs of its own: where its threads and its memory are on the node."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.fakes.pod_cgroup import pod_cgroup
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground

FLAVOR = {"dedicated_cpus": True, "numa": True}


@pytest.fixture(scope="module")
def node() -> Iterator[Playground]:
    settings = {"handlers": {"own": {"flavor": FLAVOR}}}
    with Playground(
        {"tiny": TINY}, subnet="10.140.0.0/16", settings=settings, wrapper=AS_THE_UNIT
    ) as node:
        yield node


@pytest.fixture(scope="module")
def parent() -> Iterator[str]:
    with pod_cgroup() as parent:
        yield parent


def _pod(node: Playground, name: str, cpus: str, shares: int, parent: str) -> Pod:
    """As a kubelet with the static policy asks for a container with these CPUs."""
    manifest = make_manifest(node, name, "own")
    manifest.pod.linux.cgroup_parent = parent
    manifest.pod.linux.overhead.memory_limit_in_bytes = 512 << 20
    resources = manifest.container.linux.resources
    resources.cpuset_cpus, resources.cpu_shares = cpus, shares
    return Pod(node, node.client(), manifest)


def test_each_vcpu_has_its_cpu_and_the_emulator_the_rest(node: Playground, parent: str) -> None:
    """Its memory is in the memory node of its CPUs."""
    pod = _pod(node, "own", "0-1", 2048, parent).up()
    where: dict[str, set[frozenset[int]]] = {"vcpu": set(), "other": set()}
    for task in Path(f"/proc/{pod.emulator}/task").iterdir():
        kind = "vcpu" if "CPU " in (task / "comm").read_text() else "other"
        where[kind].add(frozenset(os.sched_getaffinity(int(task.name))))
    assert where == {"vcpu": {frozenset({0})}, "other": {frozenset({1})}}
    bound = [line for line in _maps(pod) if " bind:0 " in line or " bind:0\n" in line]
    assert bound
    pod.client.stop(pod.vm, 0)
    pod.down()
    assert node.settled_leftovers() == []


def _maps(pod: Pod) -> list[str]:
    with Path(f"/proc/{pod.emulator}/numa_maps").open() as file:
        return file.readlines()


@pytest.mark.parametrize(
    ("cpus", "shares", "problem"),
    [("0-1", 512, "shares CPUs 0-1 with others"), ("", 2, "the container has none")],
)
def test_a_pod_without_cpus_of_its_own_is_refused_and_nothing_is_made(
    node: Playground, parent: str, cpus: str, shares: int, problem: str
) -> None:
    pod = _pod(node, "shared", cpus, shares, parent).run()
    with pytest.raises(CallFailed, match=problem):
        pod.create()
    assert pod.client.containers() == []
    pod.client.remove_pod(pod.id)
    assert node.settled_leftovers() == []
