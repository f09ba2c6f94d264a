"""What groups use, as the kernel tells it in either version."""

from pathlib import Path

import pytest

from virtlet.host.cgroup_usage import (
    CgroupUsage,
    CpuTime,
    DeviceIo,
    Memory,
    Pressure,
    Throttling,
)

GROUP = Path("kubepods/pod1")

V1 = {
    "cpuacct/cpuacct.usage": "1234567890\n",
    "cpuacct/cpuacct.stat": "user 100\nsystem 23\n",
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 3\nthrottled_time 4000\n",
    "memory/memory.usage_in_bytes": "5000\n",
    "memory/memory.max_usage_in_bytes": "9000\n",
    "memory/memory.failcnt": "7\n",
    "memory/memory.limit_in_bytes": "8000\n",
    "memory/memory.kmem.usage_in_bytes": "300\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/memory.stat": (
        "cache 1\nrss 1\ntotal_cache 2000\ntotal_rss 2500\ntotal_mapped_file 400\ntotal_swap 60\n"
        "total_inactive_file 1500\ntotal_pgfault 70\ntotal_pgmajfault 8\n"
    ),
    "blkio/blkio.throttle.io_service_bytes_recursive": (
        "8:0 Read 100\n8:0 Write 200\n8:0 Total 300\nTotal 300\n"
    ),
    "blkio/blkio.throttle.io_serviced_recursive": (
        "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"
    ),
    "pids/pids.max": "max\n",
}
V2 = {
    "cpu.stat": (
        "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 10\n"
        "nr_throttled 3\nthrottled_usec 4\n"
    ),
    "memory.current": "5000\n",
    "memory.peak": "9000\n",
    "memory.max": "8000\n",
    "memory.swap.current": "60\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\n",
    "memory.stat": (
        "anon 2500\nfile 2000\nkernel 300\nfile_mapped 400\ninactive_file 1500\npgfault 70\n"
        "pgmajfault 8\n"
    ),
    "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n",
    "cpu.pressure": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=17\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
    ),
    "pids.max": "512\n",
}


def _tree(root: Path, files: dict[str, str], *, unified: bool) -> CgroupUsage:
    mounts = {root} if unified else {root / name.partition("/")[0] for name in files}
    kind = "cgroup2" if unified else "cgroup"
    table = root / "mounts"
    table.parent.mkdir(exist_ok=True)
    table.write_text("".join(f"cgroup {mount} {kind} rw 0 0\n" for mount in sorted(mounts)))
    for name, text in files.items():
        controller, _, file = name.rpartition("/")
        path = root / controller / GROUP / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CgroupUsage(table)


@pytest.mark.parametrize(("files", "unified"), [(V1, False), (V2, True)], ids=["v1", "v2"])
def test_both_versions_tell_the_same(tmp_path: Path, files: dict[str, str], unified: bool) -> None:
    usage = _tree(tmp_path, files, unified=unified)
    assert usage.memory(GROUP) == Memory(
        usage=5000,
        working_set=3500,
        rss=2500,
        cache=2000,
        mapped=400,
        page_faults=70,
        major_page_faults=8,
        swap=60,
        kernel=300,
        most=9000,
        limit=8000,
        limit_hits=7,
    )
    assert usage.oom_kills(GROUP) == 2
    assert usage.io(GROUP) == (DeviceIo("8:0", 100, 1, 200, 2),)
    throttling = usage.throttling(GROUP)
    assert throttling == Throttling(10, 3, 4000)


def test_cpu_time_is_as_exact_as_the_kernel_tells(tmp_path: Path) -> None:
    one, two = _tree(tmp_path / "1", V1, unified=False), _tree(tmp_path / "2", V2, unified=True)
    assert one.cpu(GROUP) == CpuTime(1_234_567_890, 1_000_000_000, 230_000_000)
    assert two.cpu(GROUP) == CpuTime(1_234_567_000, 1_000_000_000, 234_567_000)


@pytest.mark.parametrize(
    ("file", "text", "unified"),
    [
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", False),
        ("memory.max", "max\n", True),
    ],
    ids=["v1", "v2"],
)
def test_no_limit_is_0(tmp_path: Path, file: str, text: str, unified: bool) -> None:
    usage = _tree(tmp_path, {**(V2 if unified else V1), file: text}, unified=unified)
    memory = usage.memory(GROUP)
    assert memory is not None
    assert memory.limit == 0


def test_what_only_version_2_has(tmp_path: Path) -> None:
    usage = _tree(tmp_path, V2, unified=True)
    assert usage.pressure(GROUP, "cpu") == Pressure(waiting=17_000, stalled=5_000)
    assert usage.pressure(GROUP, "io") is None
    assert usage.most_threads(GROUP) == 512
    assert _tree(tmp_path / "1", V1, unified=False).most_threads(GROUP) == 0


def test_a_group_that_is_not_there_has_no_figures(tmp_path: Path) -> None:
    usage = _tree(tmp_path, V1, unified=False)
    gone = Path("kubepods/gone")
    for read in (usage.cpu, usage.memory, usage.throttling, usage.oom_kills, usage.most_threads):
        assert read(gone) is None
    assert usage.io(gone) == ()
    # What is there is found again.
    assert usage.cpu(GROUP) is not None
