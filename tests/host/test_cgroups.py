"""Control groups, on this node's own hierarchies where it has them, and on made-up ones."""

import contextlib
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.host import cgroups
from virtlet.model.resources import Resources


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/burstable/pod1", "kubepods/burstable/pod1"),
        (
            "kubepods-burstable-pod1.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
        ),
        ("/a.slice/b.slice", "a.slice/b.slice"),
        ("", "."),
    ],
)
def test_a_pods_parent_is_a_path_or_a_slice(parent: str, path: str) -> None:
    assert cgroups.expand(parent) == Path(path)


@pytest.fixture
def pod_group() -> Iterator[str]:
    """A pod's group in every hierarchy of this node, of this test's own."""
    name = f"virtlet-test-{uuid.uuid4().hex[:8]}"
    made = []
    for hierarchy in cgroups.hierarchies():
        path = hierarchy.mount / name
        try:
            path.mkdir()
        except OSError:
            continue
        made.append(path)
    if not made:
        pytest.skip("no cgroup hierarchy is writable here")
    yield f"/{name}"
    for path in made:
        path.rmdir()


def test_a_process_in_the_group_is_limited_and_the_group_goes_when_it_is_gone(
    pod_group: str,
) -> None:
    groups = cgroups.create(pod_group, "vm")
    assert groups
    assert cgroups.create(pod_group, "vm") == groups
    failed = cgroups.limit(groups, Resources(cpu_quota=50_000, cpu_period=100_000, cpu_shares=512))
    assert failed == {}
    limited = [g for g in groups if (g / "cpu.max").exists() or (g / "cpu.cfs_quota_us").exists()]
    assert limited
    for group in limited:
        if (group / "cpu.max").exists():
            assert (group / "cpu.max").read_text().split() == ["50000", "100000"]
        else:
            assert (group / "cpu.cfs_quota_us").read_text() == "50000\n"
            assert (group / "cpu.shares").read_text() == "512\n"
    process = subprocess.Popen(["sleep", "60"])
    try:
        (limited[0] / "cgroup.procs").write_text(str(process.pid))
        if not (limited[0] / "cgroup.kill").exists():
            with pytest.raises(OSError, match="busy"):
                cgroups.remove(pod_group, "vm")
    finally:
        process.kill()
        process.wait()
    cgroups.remove(pod_group, "vm")
    cgroups.remove(pod_group, "vm")
    assert cgroups.find(pod_group, "vm") == ()


def test_a_group_holds_a_bounded_number_of_threads(pod_group: str) -> None:
    """The kernel refuses one more."""
    groups = cgroups.create(pod_group, "vm")
    try:
        assert cgroups.bound_tasks(groups, 2) == {}
        bounded = [group for group in groups if (group / "pids.max").exists()]
        if not bounded:
            pytest.skip("no hierarchy counts processes here")
        script = (
            f"echo $$ >{bounded[0]}/cgroup.procs; (:) && echo one; (: & : & : & wait) || echo many"
        )
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("one")
        assert "fork" in done.stderr
    finally:
        cgroups.remove(pod_group, "vm")


def test_what_is_left_in_a_group_is_killed_with_it(pod_group: str) -> None:
    """Where the kernel can: version 2."""
    groups = cgroups.create(pod_group, "vm")
    able = [group for group in groups if (group / "cgroup.kill").exists()]
    if not able:
        cgroups.remove(pod_group, "vm")
        pytest.skip("no group of version 2 can be made here")
    process = subprocess.Popen(["sleep", "60"])
    try:
        for group in groups:
            with contextlib.suppress(OSError):  # a cpuset of version 1 may be empty
                (group / "cgroup.procs").write_text(str(process.pid))
        cgroups.remove(pod_group, "vm")
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    assert cgroups.find(pod_group, "vm") == ()


def test_a_pod_without_a_group_gets_none() -> None:
    assert cgroups.create("/no-such-pod", "vm") == ()
    assert cgroups.create("", "vm") == ()


def test_version_2_hands_its_controllers_on_and_takes_weights(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    root = tmp_path / "unified"
    mounts.write_text(f"cgroup2 {root} cgroup2 rw 0 0\n")
    pod = root / "pod"
    pod.mkdir(parents=True)
    (pod / "cgroup.controllers").write_text("cpu memory rdma\n")
    (pod / "cgroup.subtree_control").write_text("")
    (group,) = cgroups.create("/pod", "vm", mounts)
    assert (pod / "cgroup.subtree_control").read_text() == "+memory"
    for file in ("cpu.max", "cpu.weight"):
        (group / file).write_text("")
    assert cgroups.limit((group,), Resources(cpu_quota=20_000, cpu_shares=1024)) == {}
    assert (group / "cpu.max").read_text() == "20000 100000"
    assert (group / "cpu.weight").read_text() == "39"
