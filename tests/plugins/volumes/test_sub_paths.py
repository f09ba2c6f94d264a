"""Parts of volumes as a kubelet gives them: it opens each step of the path itself, and hands over a
mount below `volume-subpaths`. Who writes to the volume may put anything in the part's place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.plugins.volumes.test_plugin import release, serve
from virtlet.host.guest_files import read_all
from virtlet.model.disk import GuestFiles, Share
from virtlet.model.vm import Mount
from virtlet.plugins.volumes.plugin import Plugin

LISTINGS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
REAPERS = "/proc/self/task"  # listed by the thread that reaps orphans, whenever one ends
_heard: list[str] | None = None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _heard is not None and event in LISTINGS:
        given = arguments[0]
        path = os.readlink(f"/proc/self/fd/{given}") if isinstance(given, int) else given
        if path != REAPERS:
            _heard.append(f"{event} {path}")


sys.addaudithook(_hear)  # for good, as none can be taken away


@pytest.fixture(params=["kubernetes.io~empty-dir", "kubernetes.io~csi", "host-path"])
def volume(request: pytest.FixtureRequest, pod_dir: Path, tmp_path: Path) -> Path:
    """A volume with a part of its own, which may be a hostPath."""
    kind: str = request.param
    path = tmp_path / "srv" if kind == "host-path" else pod_dir / "volumes" / kind / "data"
    (path / "part").mkdir(parents=True)
    (path / "part/file").write_text("of the part")
    (path / "secret").write_text("of the volume")
    return path


@pytest.fixture
def sub_path(volume: Path, pod_dir: Path) -> Iterator[Path]:
    """The mount of it that the kubelet makes."""
    with ExitStack() as cleanup:
        place = pod_dir / "volume-subpaths/data/guest/0"
        place.mkdir(parents=True)
        subprocess.run(["mount", "--bind", volume / "part", place], check=True)
        cleanup.callback(lambda: subprocess.run(["umount", place], check=True))
        yield place


def share_of(plugin: Plugin, path: Path, vm_dir: Path, *, readonly: bool = False) -> Share:
    mount = Mount(guest_path="/data", host_path=str(path), readonly=readonly)
    share = serve(plugin, mount, directory=vm_dir)
    assert isinstance(share, Share)
    return share


def test_a_part_is_all_that_is_shared(
    plugin: Plugin, volume: Path, sub_path: Path, vm_dir: Path
) -> None:
    """Its root is that of the mount: the rest of the volume is not above it."""
    near = share_of(plugin, sub_path, vm_dir).host_path
    assert os.listdir(near) == ["file"]
    assert os.path.samefile(near / "..", vm_dir)
    (near / "new").write_text("x")
    assert (volume / "part/new").read_text() == "x"
    release(plugin, vm_dir)


def test_a_link_in_the_place_of_a_part_leads_nowhere(
    plugin: Plugin, volume: Path, sub_path: Path, vm_dir: Path
) -> None:
    """Whether it is put there before the VM is made or between that and its start."""
    for moment in ("before", "between"):
        if moment == "between":
            near = share_of(plugin, sub_path, vm_dir).host_path
        (volume / "part").rename(volume / "moved")
        (volume / "part").symlink_to("/etc")
        if moment == "before":
            near = share_of(plugin, sub_path, vm_dir).host_path
        assert (near / "file").read_text() == "of the part"
        assert not (near / "passwd").exists()
        release(plugin, vm_dir)
        (volume / "part").unlink()
        (volume / "moved").rename(volume / "part")


def test_a_directory_that_is_replaced_after_the_vm_is_made_stays_the_one_that_was_shared(
    plugin: Plugin, volume: Path, vm_dir: Path
) -> None:
    near = share_of(plugin, volume, vm_dir).host_path
    aside = volume.with_name("aside")
    volume.rename(aside)
    volume.symlink_to("/etc")
    assert (near / "secret").read_text() == "of the volume"
    assert not (near / "passwd").exists()
    release(plugin, vm_dir)
    volume.unlink()
    shutil.rmtree(aside)


def test_a_part_that_can_only_be_read_is_so_with_all_that_is_mounted_inside(
    plugin: Plugin, volume: Path, sub_path: Path, vm_dir: Path
) -> None:
    """Which is what recursiveReadOnly asks for."""
    inner = sub_path / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", inner], check=True)
    try:
        near = share_of(plugin, sub_path, vm_dir, readonly=True).host_path
        for path in (near / "new", near / "inner/new"):
            with pytest.raises(OSError, match="Read-only file system"):
                path.touch()
        (inner / "new").touch()
        release(plugin, vm_dir)
    finally:
        subprocess.run(["umount", inner], check=True)


def test_a_part_that_is_a_file_is_read_where_the_kubelet_mounted_it(
    plugin: Plugin, volume: Path, pod_dir: Path
) -> None:
    place = pod_dir / "volume-subpaths/data/guest/1"
    place.parent.mkdir(parents=True)
    place.touch()
    subprocess.run(["mount", "--bind", volume / "secret", place], check=True)
    try:
        (volume / "secret").rename(volume / "moved")
        (volume / "secret").symlink_to("/etc/passwd")
        mount = Mount(guest_path="/etc/key", host_path=str(place), readonly=True)
        files = serve(plugin, mount)
        assert isinstance(files, GuestFiles)
        (file,) = read_all([files])
        assert file.content == b"of the volume"
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("readonly", [True, False])
def test_nobody_walks_a_share_however_many_files_it_has(
    plugin: Plugin, volume: Path, vm_dir: Path, readonly: bool
) -> None:
    global _heard
    _heard = []
    try:
        share_of(plugin, volume, vm_dir, readonly=readonly)
        release(plugin, vm_dir)
        assert [event for event in _heard if str(vm_dir) not in event] == []
    finally:
        _heard = None
