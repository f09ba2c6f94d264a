"""VMs are resized in place; the guests themselves say what they have."""

import contextlib
import functools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.e2e.crash_points import CrashPoints
from tests.fakes.pod_cgroup import pod_cgroup
from tests.polling import until
from virtlet.cli.client import CallFailed, NoRuntime
from virtlet.cli.playground import Playground, PlaygroundError
from virtlet.cri import api_pb2 as cri
from virtlet.host import cgroups, cpus
from virtlet.model.resources import Resources

MIB = 1 << 20
PERIOD = 100_000
OVERHEAD = 256 * MIB
"""Of a RuntimeClass whose machines can grow, without KVM."""
FOLLOWS = 15.0
"""Seconds for a guest to notice what it was given."""
SETTLED = 60.0
"""Seconds for a resize that was cut short to be put back, and for the guest to notice."""
REPORT = """\
#!/bin/sh
(while :; do
	now="cpus=$(nproc) kib=$(awk '/MemTotal/ {print $2}' /proc/meminfo)"
	[ "$now" = "$before" ] || echo "the guest has $now" >/dev/console
	before=$now
	sleep 0.2
done) &
"""


@pytest.fixture(scope="module")
def crash_points(tmp_path_factory: pytest.TempPathFactory) -> CrashPoints:
    """Where the node's manager may crash."""
    return CrashPoints(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def growing_node(
    tmp_path_factory: pytest.TempPathFactory, crash_points: CrashPoints
) -> Iterator[Playground]:
    """A node whose handler `growing` has machines that can grow, and that Linux lets grow."""
    installed = tmp_path_factory.mktemp("disguise")
    info = installed / "disguise-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: disguise\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[virtlet]\ndisguise = tests.fakes.disguise:Plugin\n")
    flavor = {"max_vcpus": 3, "max_memory": "512Mi"}
    with Playground(
        {"tiny": TINY},
        subnet="10.129.0.0/16",
        settings={"handlers": {"growing": {"plugins": ["disguise"], "flavor": flavor}}},
        environment={"PYTHONPATH": f"{installed}:{ROOT}", **crash_points.environment},
    ) as playground:
        yield playground


@pytest.fixture
def cgroup_parent() -> Iterator[str]:
    """The pod's own control group."""
    with pod_cgroup() as parent:
        yield parent


@pytest.fixture
def pod(growing_node: Playground, cgroup_parent: str, crash_points: CrashPoints) -> Iterator[Pod]:
    """A pod of one CPU and 256 MiB whose guest reports what it has; not started."""
    manifest = make_manifest(growing_node, handler="growing")
    manifest.pod.linux.cgroup_parent = cgroup_parent
    manifest.pod.linux.overhead.memory_limit_in_bytes = OVERHEAD
    manifest.pod.annotations["VirtletCloudInitUserDataScript"] = REPORT
    manifest.container.linux.resources.CopyFrom(_resources(cpus=1.0, memory=256 * MIB))
    pod = Pod(growing_node, growing_node.client(), manifest).run().create()
    yield pod
    crash_points.live()
    pod.down()
    assert growing_node.settled_leftovers() == []


def _resources(cpus: float = 0, memory: int = 0, **others: Any) -> cri.LinuxContainerResources:
    quota = int(cpus * PERIOD)
    return cri.LinuxContainerResources(
        cpu_quota=quota,
        cpu_period=PERIOD if quota else 0,
        memory_limit_in_bytes=memory,
        **others,
    )


USUAL = _resources(
    cpus=2.5,
    memory=256 * MIB,
    cpu_shares=256,
    oom_score_adj=400,
    cpuset_cpus=cpus.CPUS.read_text().strip(),
)
LESS = _resources(cpus=1.5, memory=208 * MIB, cpu_shares=512, oom_score_adj=500, cpuset_cpus="0")
MORE = _resources(cpus=2.5, memory=384 * MIB, cpu_shares=512, oom_score_adj=500, cpuset_cpus="0")
TOO_LITTLE = _resources(
    cpus=1.5, memory=64 * MIB, cpu_shares=512, oom_score_adj=500, cpuset_cpus="0"
)


def _update(pod: Pod, resources: cri.LinuxContainerResources | None) -> None:
    request = cri.UpdateContainerResourcesRequest(container_id=pod.vm, linux=resources)
    pod.client.call("UpdateContainerResources", request)


def _refused(pod: Pod, resources: cri.LinuxContainerResources) -> tuple[grpc.StatusCode, str]:
    """How an update is refused; whatever else it does, the status says the same as before."""
    before = pod.status.resources
    with pytest.raises(CallFailed) as caught:
        _update(pod, resources)
    assert pod.status.resources == before
    return caught.value.code, caught.value.details


def _size(pod: Pod) -> tuple[int, int]:
    """vCPUs and MiB of memory that the guest reported last; zeros before it did."""
    said = re.findall(r"the guest has cpus=(\d+) kib=(\d+)\r?\n", pod.console())
    return (int(said[-1][0]), int(said[-1][1]) >> 10) if said else (0, 0)


def _wait_for(pod: Pod, vcpus: int, low: int, high: int, timeout: float = FOLLOWS) -> int:
    """Wait until the guest reports as many vCPUs and memory between two bounds (MiB)."""

    def fits() -> bool:
        has, mib = _size(pod)
        return has == vcpus and low <= mib <= high

    try:
        until(fits, f"{vcpus} vCPUs and {low}..{high} MiB", timeout)
    except Exception as error:
        raise AssertionError(f"{error}; the guest has {_size(pod)}") from None
    return _size(pod)[1]


def _limit(pod: Pod, *names: str) -> str:
    """The first of some files that a control group of the VM has."""
    groups = cgroups.find(pod.pod.linux.cgroup_parent, pod.vm)
    return next(
        (group / name).read_text().strip()
        for group in groups
        for name in names
        if (group / name).exists()
    )


def _emulator(pod: Pod) -> Path:
    """The emulator's directory in /proc."""
    pid = (pod.node.data_dir / "libvirt/run/qemu").glob(f"virtlet-{pod.vm[:12]}*.pid")
    return Path("/proc") / next(pid).read_text().strip()


def _oom_score_adj(pod: Pod) -> int:
    return int((_emulator(pod) / "oom_score_adj").read_text())


def _emulator_cpus(pod: Pod) -> set[frozenset[int]]:
    """Where the threads of the pod's emulator may run."""
    found = set()
    for task in (_emulator(pod) / "task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # They come and go.
            found.add(frozenset(os.sched_getaffinity(int(task.name))))
    return found


def _needs_cgroups(parent: str) -> None:
    groups = tuple(h.mount / parent.strip("/") for h in cgroups.hierarchies())
    if cgroups.unenforced(groups, Resources(cpu_quota=1, cpu_shares=2)):
        pytest.skip("no writable control groups here")


def _usage(pod: Pod) -> int:
    """Memory in use, of the container, as a kubelet asks before it lowers a limit."""
    wanted = cri.ContainerStatsFilter(label_selector=pod.manifest.container.labels)
    request = cri.ListContainerStatsRequest(filter=wanted)
    listed = pod.client.call("ListContainerStats", request).stats
    usage: int = next(s for s in listed if s.attributes.id == pod.vm).memory.usage_bytes.value
    return usage


KUBELETS = {
    "oom_score_adj": 995,
    "hugepage_limits": [cri.HugepageLimit(page_size=size) for size in ("2MB", "1GB")],
}
"""What a kubelet sends with every update of a Burstable pod's container."""


def _hold(pod: Pod, memory: int) -> None:
    """Limit the pod's own control group, as the kubelet does; the kernel may refuse that."""
    group = cgroups.expand(pod.pod.linux.cgroup_parent)
    for hierarchy in cgroups.hierarchies():
        for file in ("memory.limit_in_bytes", "memory.max"):
            if (path := hierarchy.mount / group / file).exists():
                path.write_text(str(memory))


def _lower_as_a_kubelet_does(pod: Pod, mib: int) -> None:
    """The container first, then the pod's group; it waits until less is used than it may be, and
    asks again where the guest cannot give so much yet."""
    until(lambda: 0 < _usage(pod) < mib * MIB, f"a container that uses less than {mib}Mi", 60)
    wanted = _resources(
        cpus=1.0,
        memory=mib * MIB,
        cpu_shares=1024,
        memory_swap_limit_in_bytes=mib * MIB,
        **KUBELETS,
    )

    def lowered() -> bool:
        try:
            _update(pod, wanted)
        except CallFailed as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return False
        return True

    until(lowered, f"a guest that gives back all but {mib} MiB", 60)
    _hold(pod, mib * MIB + OVERHEAD)
    limits = cri.LinuxContainerResources(
        cpu_period=PERIOD, cpu_quota=PERIOD, cpu_shares=1024, memory_limit_in_bytes=mib * MIB
    )
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=limits)
    request.overhead.memory_limit_in_bytes = OVERHEAD
    pod.client.call("UpdatePodSandboxResources", request)


def test_a_running_guest_gets_more_and_less(pod: Pod, growing_node: Playground) -> None:
    """CPUs, memory and limits follow the updates, over a restart of the manager too."""
    _needs_cgroups(pod.pod.linux.cgroup_parent)
    _hold(pod, 256 * MIB + OVERHEAD)
    pod.client.start(pod.vm)
    # The kernel keeps some of its 256 MiB to itself.
    full = _wait_for(pod, 1, 100, 256, timeout=90)

    for _ in range(2):
        _lower_as_a_kubelet_does(pod, 208)
        _wait_for(pod, 1, full - 50, full - 44)
    assert pod.status.resources.linux.memory_limit_in_bytes == 208 * MIB
    assert pod.status.resources.linux.cpu_quota == PERIOD

    # What is lowered further is refused for what the guest uses, at once when it is asked again.
    for _ in range(2):
        code, message = _refused(pod, _resources(memory=64 * MIB))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert _refused(pod, _resources(memory=64 * MIB)) == (code, message)

    _hold(pod, 512 * MIB + OVERHEAD)
    _update(pod, _resources(cpus=2.5, memory=384 * MIB, cpu_shares=512, cpuset_cpus="0"))
    _wait_for(pod, 3, full + 100, full + 128)
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == "250000"
    assert _limit(pod, "cpu.weight", "cpu.shares") in ("20", "512")
    assert _emulator_cpus(pod) == {frozenset({0})}

    growing_node.kill()
    growing_node.start()
    assert pod.status.resources.linux == _resources(
        cpus=2.5,
        memory=384 * MIB,
        cpu_shares=512,
        cpuset_cpus="0",
        **KUBELETS,
    )
    assert _size(pod)[0] == 3

    code, message = _refused(pod, _resources(cpus=1.0, memory=600 * MIB, cpu_shares=99))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "600Mi of memory without a restart" in message
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == "250000"
    assert _limit(pod, "cpu.weight", "cpu.shares") in ("20", "512")

    # More than the guest can do without.
    code, message = _refused(pod, _resources(cpus=1.0, memory=64 * MIB))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "cannot do with 64 MiB" in message
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == "250000"
    _wait_for(pod, 3, full + 100, full + 128)

    _lower_as_a_kubelet_does(pod, 256)
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == "100000"
    # The limit holds; emulation takes no vCPU away, and the guest may keep some of the device.
    _wait_for(pod, 3, full - 30, full + 30)
    assert pod.status.state == cri.CONTAINER_RUNNING


def test_a_vm_that_is_not_started_starts_with_the_new_limits(pod: Pod) -> None:
    """And one that has ended takes no more."""
    _needs_cgroups(pod.pod.linux.cgroup_parent)
    _update(pod, _resources(cpus=2.0, memory=192 * MIB, cpuset_cpus="0"))
    assert pod.status.state == cri.CONTAINER_CREATED
    assert pod.status.resources.linux == _resources(2.0, 192 * MIB, cpuset_cpus="0")
    _update(pod, _resources(memory=320 * MIB, cpu_shares=256, oom_score_adj=500))
    pod.client.start(pod.vm)
    assert _emulator_cpus(pod) == {frozenset({0})}
    assert _oom_score_adj(pod) == 500
    everywhere = Path("/sys/devices/system/cpu/online").read_text().strip()
    _update(pod, _resources(cpuset_cpus=everywhere, oom_score_adj=600))
    assert _emulator_cpus(pod) == {frozenset(os.sched_getaffinity(0))}
    assert _oom_score_adj(pod) == pod.status.resources.linux.oom_score_adj == 600
    _wait_for(pod, 2, 200, 320, timeout=90)
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == "200000"
    assert _limit(pod, "cpu.weight", "cpu.shares") in ("10", "256")
    _update(pod, _resources(cpus=-1 / PERIOD))
    assert _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] in ("max", "-1")
    pod.client.stop(pod.vm, 0)
    code, message = _refused(pod, _resources(memory=160 * MIB))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "is exited and cannot be resized" in message
    _update(pod, None)


def _killed(pod: Pod, step: Callable[[], object]) -> None:
    """Do something that kills the manager, at once or soon."""
    with contextlib.suppress(CallFailed, NoRuntime, PlaygroundError):
        step()
    assert pod.node.process is not None
    assert pod.node.process.wait(60) == -signal.SIGKILL


def _agreed(pod: Pod, full: int) -> cri.LinuxContainerResources:
    """What the status says, once guest, emulator and control groups say the same."""
    said = pod.status.resources.linux
    assert said in (USUAL, LESS, MORE)
    mib = full + (said.memory_limit_in_bytes >> 20) - 256

    def differing() -> list[str]:
        vcpus, has = _size(pod)
        agree = {
            # Emulation takes none away, nor does every guest give one back.
            "vCPUs": vcpus in (-(-said.cpu_quota // PERIOD), 3),
            "memory": mib - 30 <= has <= mib + 30,
            "shares": _limit(pod, "cpu.weight", "cpu.shares")
            in (("10", "256") if said == USUAL else ("20", "512")),
            "quota": _limit(pod, "cpu.max", "cpu.cfs_quota_us").split()[0] == str(said.cpu_quota),
            "OOM score": _oom_score_adj(pod) == said.oom_score_adj,
            "CPUs": _emulator_cpus(pod) == {cpus.parse_list(said.cpuset_cpus)},
        }
        return [what for what, agrees in agree.items() if not agrees]

    try:
        until(lambda: not differing(), "agreement", SETTLED)
    except TimeoutError as error:
        pytest.fail(f"{error}: {differing()} are not as the status says")
    assert pod.status.resources.linux == said
    return said


@pytest.mark.timeout(900)
def test_a_crash_at_any_point_of_a_resize_leaves_guest_and_status_in_agreement(
    pod: Pod, crash_points: CrashPoints
) -> None:
    """Of one that succeeds or is undone, while one is put back, while the guest takes memory up."""
    _needs_cgroups(pod.pod.linux.cgroup_parent)
    node = pod.node
    pod.client.start(pod.vm)
    full = _wait_for(pod, 1, 100, 256, timeout=90)
    _update(pod, USUAL)
    assert _agreed(pod, full) == USUAL

    def fail() -> None:
        with pytest.raises(CallFailed, match="cannot do with 64 MiB"):
            _update(pod, TOO_LITTLE)

    undone = crash_points.passed_in(fail)
    assert _agreed(pod, full) == USUAL
    assert {"resize-limits:reverted", "vm-resize-undone:committed"} <= {*undone}
    done = crash_points.passed_in(lambda: _update(pod, LESS))
    assert _agreed(pod, full) == LESS
    assert {"vm-resizing:committed", "resize-machine:applied", "vm-resized:committed"} <= {*done}
    _update(pod, USUAL)

    crashes = [(point, TOO_LITTLE, undone) for point in undone if point not in done]
    crashes += [(point, LESS, done) for point in done]
    for point, change, way in crashes:
        crash_points.die_at(point)
        _killed(pod, functools.partial(_update, pod, change))
        # It was this update that came there, not the putting back of the one before.
        assert crash_points.passed == way[: way.index(point) + 1]
        if point == "resize-machine:applied":
            crash_points.die_at(point)
            _killed(pod, node.start)
        node.start()
        assert _agreed(pod, full) == (LESS if point == "vm-resized:committed" else USUAL), point
    _update(pod, USUAL)

    killing = threading.Timer(0.1, node.kill)
    killing.start()
    _killed(pod, lambda: _update(pod, MORE))
    killing.join()
    node.start()
    assert _agreed(pod, full) in (USUAL, MORE)
    # What a kubelet does: it asks again.
    _update(pod, MORE)
    assert _agreed(pod, full) == MORE


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        (_resources(cpuset_cpus="4095"), "no CPU 4095"),
        (_resources(cpuset_cpus="a-b"), "a list of numbers"),
        (_resources(cpuset_mems="77"), "no memory node 77"),
        (_resources(memory=-1), "memory_limit_in_bytes is negative"),
        (_resources(memory=1 * MIB), "must be between 32Mi"),
        (_resources(cpu_shares=-5), "cpu_shares is negative"),
        (cri.LinuxContainerResources(cpu_quota=-2), "cpu_quota -2"),
        (cri.LinuxContainerResources(cpu_quota=999, cpu_period=PERIOD), "cpu_quota 999"),
        (cri.LinuxContainerResources(cpu_period=5), "cpu_period 5"),
    ],
)
def test_impossible_values_are_refused(
    pod: Pod, resources: cri.LinuxContainerResources, says: str
) -> None:
    """With a message that says which; nothing changes."""
    code, message = _refused(pod, resources)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in message


def test_what_is_unknown_is_not_found_and_pods_are_told_nothing_new(pod: Pod) -> None:
    """The kubelet changes the pod's own group by itself."""
    unknown = cri.UpdateContainerResourcesRequest(container_id="x", linux=_resources(1.0))
    with pytest.raises(CallFailed, match="NOT_FOUND"):
        pod.client.call("UpdateContainerResources", unknown)
    method = "UpdatePodSandboxResources"
    for request in (
        cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id),
        cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=_resources(2.0)),
    ):
        pod.client.call(method, request)
    with pytest.raises(CallFailed, match="NOT_FOUND"):
        pod.client.call(method, cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id="x"))
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        pod.client.call(method, cri.UpdatePodSandboxResourcesRequest())
