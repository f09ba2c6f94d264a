"""Changing the limits of control groups: all of them or none."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.pod_cgroup import pod_cgroup
from virtlet.errors import FailedPrecondition
from virtlet.host import cgroups
from virtlet.model.resources import Resources


@pytest.fixture
def vm_groups() -> Iterator[tuple[Path, ...]]:
    """A VM's groups in every hierarchy of this node; its pod's are limited to one CPU."""
    with pod_cgroup() as parent:
        groups = cgroups.create(parent, "vm")
        pod = tuple(group.parent for group in groups)
        cgroups.limit(pod, Resources(cpu_quota=100_000, cpu_period=100_000))
        yield groups
        cgroups.remove(parent, "vm")


def _values(groups: tuple[Path, ...]) -> dict[str, str]:
    version_2 = ("cpu.max", "cpu.weight", "cpuset.cpus")
    names = (*version_2, "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return {
        name: (group / name).read_text().strip()
        for group in groups
        for name in names
        if (group / name).exists()
    }


def _needs(groups: tuple[Path, ...]) -> None:
    lacking = cgroups.unenforced(groups, Resources(cpu_quota=1, cpu_shares=2))
    if lacking:
        pytest.skip(f"no writable cgroup here for {lacking}")


def test_limits_are_changed_and_put_back(vm_groups: tuple[Path, ...]) -> None:
    """To what they were, whatever that was."""
    _needs(vm_groups)
    before = _values(vm_groups)
    wanted = Resources(cpu_quota=20_000, cpu_period=50_000, cpu_shares=300, cpuset_cpus="0")
    held = cgroups.held(vm_groups, wanted)
    cgroups.change_limits(vm_groups, wanted)
    after = _values(vm_groups)
    if "cpu.max" in after:
        assert (after["cpu.max"], after["cpu.weight"]) == ("20000 50000", "12")
    else:
        assert (after["cpu.cfs_quota_us"], after["cpu.cfs_period_us"]) == ("20000", "50000")
        assert after["cpu.shares"] == "300"
    assert after.get("cpuset.cpus", "0") == "0"
    cgroups.put_back(held)
    assert _values(vm_groups) == before


def test_the_order_of_quota_and_period_does_not_matter(vm_groups: tuple[Path, ...]) -> None:
    """Whichever is written first, the other way round would pass the pod's limit for a moment."""
    _needs(vm_groups)
    for quota, period in ((100_000, 100_000), (10_000, 10_000), (90_000, 100_000)):
        cgroups.change_limits(vm_groups, Resources(cpu_quota=quota, cpu_period=period))
        values = _values(vm_groups)
        version_1 = (values.get("cpu.cfs_quota_us"), values.get("cpu.cfs_period_us"))
        got = values.get("cpu.max") or " ".join(map(str, version_1))
        assert got == f"{quota} {period}"


def test_a_refused_limit_leaves_all_as_they_were(vm_groups: tuple[Path, ...]) -> None:
    """Those that were written before it, too."""
    _needs(vm_groups)
    before = _values(vm_groups)
    impossible = Resources(cpu_shares=500, cpu_quota=10, cpu_period=100_000)
    with pytest.raises(FailedPrecondition, match="does not take '10"):
        cgroups.change_limits(vm_groups, impossible)
    assert _values(vm_groups) == before


def test_a_limit_can_be_lifted(vm_groups: tuple[Path, ...]) -> None:
    """A quota of -1 is none: version 2 calls it max."""
    _needs(vm_groups)
    pod = tuple(group.parent for group in vm_groups)
    cgroups.change_limits(vm_groups, Resources(cpu_quota=50_000))
    cgroups.change_limits(pod, Resources(cpu_quota=-1))
    cgroups.change_limits(vm_groups, Resources(cpu_quota=-1))
    values = _values(vm_groups)
    assert values.get("cpu.max", "max 100000") == "max 100000"
    assert values.get("cpu.cfs_quota_us", "-1") == "-1"


def test_processes_follow_their_groups_cpus(vm_groups: tuple[Path, ...]) -> None:
    """Where there is a cpuset hierarchy."""
    if cgroups.unenforced(vm_groups, Resources(cpuset_cpus="0")):
        pytest.skip("no cpuset hierarchy here")
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            for group in vm_groups:
                (group / "cgroup.procs").write_text(str(process.pid))
            cgroups.change_limits(vm_groups, Resources(cpuset_cpus="0"))
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.kill()
    assert "Cpus_allowed_list:\t0\n" in status


def test_what_no_group_can_hold_is_named(tmp_path: Path) -> None:
    """A group without a controller has none of its files."""
    (tmp_path / "cpu.weight").touch()
    asked = Resources(cpu_quota=1000, cpu_shares=2, cpuset_cpus="0")
    assert cgroups.unenforced((tmp_path,), asked) == ("CPU quota", "CPUs")
    assert cgroups.unenforced((), Resources(cpuset_mems="0")) == ("memory nodes",)
    assert cgroups.unenforced((), Resources()) == ()


def test_version_2_takes_an_empty_cpuset_back(tmp_path: Path) -> None:
    """As a line: a file that is given nothing keeps what it has."""
    (tmp_path / "cpuset.cpus").write_text("\n")
    held = cgroups.held((tmp_path,), Resources(cpuset_cpus="0-1"))
    cgroups.change_limits((tmp_path,), Resources(cpuset_cpus="0-1"))
    assert (tmp_path / "cpuset.cpus").read_text() == "0-1"
    cgroups.put_back(held)
    assert (tmp_path / "cpuset.cpus").read_text() == "\n"


def test_a_cpuset_that_the_pods_leaves_empty_is_left_out(vm_groups: tuple[Path, ...]) -> None:
    """In version 1 it takes no process; the VM is pinned without it."""
    cpusets = [group for group in vm_groups if (group / "cpuset.sched_load_balance").exists()]
    if not cpusets:
        pytest.skip("no cpuset hierarchy of version 1 here")
    pod = cpusets[0].parent
    cgroups.remove(f"/{pod.name}", "vm")
    for file in ("cpuset.cpus", "cpuset.mems"):
        (pod / file).write_text("\n")
    assert cpusets[0] not in cgroups.create(f"/{pod.name}", "vm")
    assert not cpusets[0].exists()
