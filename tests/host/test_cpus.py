"""Lists of CPUs and memory nodes."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.errors import InvalidArgument
from virtlet.host import cpus


@given(st.sets(st.integers(0, 500), min_size=1))
def test_any_set_is_read_back(numbers: set[int]) -> None:
    """In whatever order it is written."""
    assert cpus.parse_list(",".join(map(str, numbers))) == numbers


@given(st.text(max_size=20))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    """Nothing else, and never for long."""
    with contextlib.suppress(ValueError):
        assert cpus.parse_list(text)


def test_ranges_and_singles_mix() -> None:
    """As the kernel writes them."""
    assert cpus.parse_list("0-2,4,7-7\n") == {0, 1, 2, 4, 7}


@pytest.mark.parametrize("text", ["0-99999", "0-65536", "1," * 3000 + "1"])
def test_huge_lists_are_refused(text: str) -> None:
    """No machine has that many."""
    with pytest.raises(ValueError, match="too"):
        cpus.parse_list(text)


def test_a_request_may_name_what_is_here(tmp_path: Path) -> None:
    """And nothing else; the message says what there is."""
    online = tmp_path / "online"
    online.write_text("0-3,8\n")
    assert cpus.cpuset("2,8", online) == {2, 8}
    with pytest.raises(InvalidArgument, match=r"cpuset_cpus '3-5'.*no CPU 4; it has 0-3,8"):
        cpus.cpuset("3-5", online)
    assert cpus.cpuset(f"{min(os.sched_getaffinity(0))}")


def test_a_kernel_without_numa_has_node_0(tmp_path: Path) -> None:
    """It says so nowhere."""
    assert cpus.memset("0", tmp_path / "none") == {0}
    with pytest.raises(InvalidArgument, match="no memory node 1"):
        cpus.memset("1", tmp_path / "none")


def test_cpus_are_told_by_memory_node(tmp_path: Path) -> None:
    for node, text in ((0, "0-1,8"), (1, "2-3"), (2, "")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(f"{text}\n")
    found = cpus.nodes_of(frozenset({1, 3, 8}), tmp_path)
    assert found == {0: {1, 8}, 1: {3}}
    assert cpus.nodes_of(frozenset({1}), tmp_path / "without NUMA") == {}


def test_a_core_is_known_by_its_first_thread(tmp_path: Path) -> None:
    (tmp_path / "cpu9/topology").mkdir(parents=True)
    (tmp_path / "cpu9/topology/thread_siblings_list").write_text("1,9\n")
    assert cpus.core_of(9, tmp_path) == 1
    assert cpus.core_of(7, tmp_path) == 7
