"""Network namespaces that a file keeps alive."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.links import shown
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import netns


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "netns" / "pod"
    netns.create(path)
    yield path
    netns.delete(path)


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_work_inside(namespace: Path) -> None:
    """Work runs inside, its programs too; the calling thread stays where it was."""
    before = own()
    inside = netns.inside(namespace, own)
    assert inside != before
    assert netns.inside(namespace, own) == inside
    program = ["readlink", "/proc/self/ns/net"]
    assert netns.inside(namespace, lambda: subprocess.check_output(program, text=True)) == (
        f"{inside}\n"
    )
    assert own() == before


def test_errors_come_out(namespace: Path) -> None:
    """An error of the work is raised by the call."""
    with pytest.raises(ZeroDivisionError):
        netns.inside(namespace, lambda: 1 // 0)


def test_many_at_a_time(namespace: Path) -> None:
    """Threads enter side by side without getting in each other's way."""
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(netns.inside(namespace, own)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 16
    assert set(seen) == {netns.inside(namespace, own)}


def test_made_twice(namespace: Path) -> None:
    """A namespace is never replaced by another."""
    inside = netns.inside(namespace, own)
    with pytest.raises(VirtletError, match="there is a network namespace at"):
        netns.create(namespace)
    assert netns.inside(namespace, own) == inside


def test_deleted(tmp_path: Path) -> None:
    """Deleting is idempotent and leaves neither mount nor file."""
    path = tmp_path / "pod"
    netns.create(path)
    netns.delete(path)
    netns.delete(path)
    assert not path.exists()
    assert str(path) not in Path("/proc/self/mounts").read_text()
    with pytest.raises(FailedPrecondition, match="is gone"):
        netns.inside(path, own)


def test_file_left_by_a_reboot(tmp_path: Path) -> None:
    """An empty file is no namespace; it is used again, or deleted."""
    path = tmp_path / "pod"
    path.touch()
    assert not netns.exists(path)
    netns.create(path)
    assert netns.exists(path)
    netns.delete(path)
    path.touch()
    netns.delete(path)
    assert not path.exists()


def test_new_namespace_is_empty(namespace: Path) -> None:
    """It has a loopback interface that is down, and nothing of ours."""
    (link,) = (link for link in netns.inside(namespace, shown) if "LOOPBACK" in link.flags)
    assert "UP" not in link.flags
