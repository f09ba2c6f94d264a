"""The manager is killed before and after everything it does; nothing is lost, nothing leaks.

The points are not listed here: a first run of the whole cycle passes them all and writes down
their names.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import frozen

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.e2e.crash_points import CrashPoints
from tests.fakes import passing_plugin
from tests.fakes.pod_cgroup import pod_cgroup
from tests.plugins.libvirt_qemu.rig import open_directory
from virtlet.cli.client import CallFailed, NoRuntime
from virtlet.cli.playground import Playground
from virtlet.core.hooks.plugin_package import SourcePackage, pretend_installed
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups

NODES = 3
"""The points of the whole cycle are shared out to so many: a node waits more than it works."""
HANDLER = "equipped"
"""Its VMs have a TPM, and can have a device of the node."""
STRIDE = 5
"""Of the points where one attempt follows another, one of so many is taken: that is another moment
for each effect, and each costs some three seconds."""


@frozen
class MortalNode:
    """A node whose manager is killed all the time, and where."""

    node: Playground
    points: CrashPoints


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[MortalNode]]:
    """Some."""
    installed = tmp_path_factory.mktemp("installed")
    passing = SourcePackage(
        directory=ROOT,
        name="passing",
        version="1",
        plugins={"passing": "tests.fakes.passing_plugin:Plugin"},
    )
    paths = pretend_installed([passing], installed)
    environment = {"PYTHONPATH": ":".join(map(str, paths))}
    handler = {"plugins": ["passing"], "without": ["devices"], "flavor": {"tpm": True}}
    with ExitStack() as stack:
        # The emulator's user has to pass through what its jail shows of the tree.
        tree = stack.enter_context(open_directory())
        passing_plugin.make_tree(tree)
        environment[passing_plugin.TREE] = str(tree)
        made = []
        for number in range(NODES):
            points = CrashPoints(tmp_path_factory.mktemp("points"))
            node = stack.enter_context(
                Playground(
                    {"tiny": TINY},
                    subnet=f"10.{125 + number}.0.0/16",
                    settings={"handlers": {HANDLER: handler}},
                    environment={**environment, **points.environment},
                )
            )
            with node.client() as client:
                client.pull("virtlet.cloud/tiny")
            made.append(MortalNode(node, points))
        yield made


@pytest.fixture
def cgroup_parent() -> Iterator[str]:
    """The control group of a node's pods."""
    with pod_cgroup() as parent:
        yield parent


class Kubelet:
    """Calls until each call succeeds, as a kubelet does; the manager may die in between."""

    def __init__(self, node: Playground, name: str, cgroup_parent: str) -> None:
        self.node = node
        self.deaths = 0
        self.attempt = 0
        # A TPM and a file server stand for the programs that serve a VM's devices.
        manifest = make_manifest(node, name, HANDLER)
        # So that volumes are among the effects; one that is mounted on the node stands for all.
        del manifest.container.mounts[:]
        self.volume = node.directory / "volumes" / name
        self.volume.mkdir(parents=True)
        (self.volume / "file").write_text("the pod's")
        manifest.container.mounts.add(container_path="/data", host_path=str(self.volume))
        self.group = Path(node.environment[passing_plugin.TREE], passing_plugin.GROUP)
        self.owner = self.group.stat()
        manifest.container.devices.add(
            container_path=str(self.group), host_path=str(self.group), permissions="rw"
        )
        manifest.pod.linux.cgroup_parent = cgroup_parent
        self.pod = Pod(node, node.client(), manifest)

    def insist(self, step: str) -> None:
        """One step of the cycle, retried over the manager's death."""
        for _ in range(5):
            try:
                getattr(self, step)()
                return
            except (CallFailed, NoRuntime) as error:
                assert self.node.process is not None
                try:
                    self.node.process.wait(5.0)
                except subprocess.TimeoutExpired:
                    raise error from None  # The manager lives: it is a refusal.
                self.deaths += 1
                self.node.start()
        pytest.fail(f"{step} does not succeed")

    def up(self) -> None:
        self.pod = self.pod.run()

    def create(self) -> None:
        self.pod = self.pod.create(self.attempt)

    def start(self) -> None:
        self.pod.client.start(self.pod.vm)

    def stop(self) -> None:
        self.pod.client.stop(self.pod.vm, 0)

    def drop(self) -> None:
        self.pod.client.remove(self.pod.vm)

    def down(self) -> None:
        self.pod.client.stop_pod(self.pod.id)

    def remove(self) -> None:
        self.pod.client.remove_pod(self.pod.id)


def _cycle(kubelet: Kubelet) -> None:
    for step in ("up", "create", "start"):
        kubelet.insist(step)
    assert len(kubelet.pod.client.pods()) == 1
    assert len(kubelet.pod.client.containers()) == 1
    assert kubelet.pod.status.state == cri.CONTAINER_RUNNING
    kubelet.insist("stop")
    assert kubelet.pod.status.state == cri.CONTAINER_EXITED
    _end(kubelet)


def _restart(kubelet: Kubelet) -> None:
    """What ended is removed, and the next attempt takes its place in the pod."""
    before = _kinds(kubelet.node)
    kubelet.insist("drop")
    kubelet.attempt += 1
    for step in ("create", "start"):
        kubelet.insist(step)
    assert [vm.id for vm in kubelet.pod.client.containers()] == [kubelet.pod.vm]
    assert kubelet.pod.status.state == cri.CONTAINER_RUNNING
    kubelet.insist("stop")
    assert _kinds(kubelet.node) == before


def _kinds(node: Playground) -> Counter[str]:
    """How many of each kind are on the node; but for processes, some of which only pass."""
    kinds = [line.split()[0] for line in node.leftovers()]
    return Counter(kind for kind in kinds if kind != "process")


def _end(kubelet: Kubelet) -> None:
    for step in ("down", "remove"):
        kubelet.insist(step)
    assert kubelet.node.settled_leftovers() == []
    assert (kubelet.volume / "file").read_text() == "the pod's"
    assert kubelet.group.stat() == kubelet.owner
    assert _groups_below(kubelet.pod.pod.linux.cgroup_parent) == []
    assert kubelet.pod.client.pods() == []


def _groups_below(parent: str) -> list[Path]:
    """Control groups that VMs left in a pod's."""
    groups = [hierarchy.mount / parent.strip("/") for hierarchy in cgroups.hierarchies()]
    return [path for group in groups if group.is_dir() for path in group.iterdir() if path.is_dir()]


@pytest.mark.timeout(900)
def test_a_crash_at_any_point_leaves_what_was_asked_for_and_nothing_else(
    nodes: list[MortalNode], cgroup_parent: str
) -> None:
    first = nodes[0]
    points = first.points.passed_in(lambda: _cycle(Kubelet(first.node, "trace", cgroup_parent)))
    # Every effect of pod up, VM up, VM down and pod down is there, from before to after.
    for effect in (
        "pod-directory",
        "network",
        "disk[root]",
        "disk[volume-0]",
        "disk[volume-1]",
        "disk[seed]",
        "domain",
        "console",
        "cgroup",
        "running",
    ):
        for moment in ("before-intent", "intended", "applied", "recorded", "reverted"):
            assert f"{effect}:{moment}" in points
    assert {"network:adjusted", "network:served", "running:backends-started"} <= set(points)
    with ThreadPoolExecutor(NODES) as pool:
        shares = [points[number::NODES] for number in range(NODES)]
        assert sum(pool.map(_killed_at_each, nodes, shares)) == len(points)


def _killed_at_each(mortal: MortalNode, points: Sequence[str]) -> int:
    """Whole cycles, each with a death at a point; returns how many."""
    with pod_cgroup() as cgroup_parent:
        for number, point in enumerate(points):
            mortal.points.die_at(point)
            kubelet = Kubelet(mortal.node, f"crash{number}", cgroup_parent)
            try:
                _cycle(kubelet)
            except BaseException as error:
                error.add_note(f"killed at {point}")
                raise
            assert kubelet.deaths == 1, f"the manager was not killed at {point}"
    return len(points)


def test_a_crash_while_an_attempt_follows_another_leaves_the_one_that_was_asked_for(
    nodes: list[MortalNode], cgroup_parent: str
) -> None:
    """The effects are those of the whole cycle, so some points from all over are enough here."""
    mortal = nodes[0]
    kubelet = Kubelet(mortal.node, "again", cgroup_parent)
    for step in ("up", "create", "start", "stop"):
        kubelet.insist(step)
    points = mortal.points.passed_in(lambda: _restart(kubelet))
    # All of RemoveContainer, and of another CreateContainer and StartContainer.
    for point in ("domain:reverted", "vm-removed:committed", "domain:applied", "running:applied"):
        assert point in points
    for deaths, point in enumerate(points[::STRIDE], start=1):
        mortal.points.die_at(point)
        try:
            _restart(kubelet)
        except BaseException as error:
            error.add_note(f"killed at {point}")
            raise
        assert kubelet.deaths == deaths, f"the manager was not killed at {point}"
    _end(kubelet)
