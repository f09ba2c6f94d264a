import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.host import mounts
from virtlet.host.files import remove_tree


@pytest.fixture(autouse=True)
def shared(tmp_path: Path) -> Iterator[None]:
    """As under systemd: what is mounted or unmounted here is so at every peer of the mount."""
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    subprocess.run(["mount", "--make-shared", tmp_path], check=True)
    yield
    subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def closed(shared: None, tmp_path: Path) -> Iterator[Path]:
    """A directory in one that others cannot pass, with something mounted inside it."""
    outer = tmp_path / "outer"
    source = outer / "source"
    inner = source / "inner"
    inner.mkdir(parents=True)
    outer.chmod(0o750)
    (source / "file").write_text("kept")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", inner], check=True)
    (inner / "deep").write_text("kept too")
    yield source
    subprocess.run(["umount", inner], check=True)


@pytest.fixture
def place(shared: None, tmp_path: Path) -> Iterator[Path]:
    """Where it is to appear."""
    place = tmp_path / "our own" / "place"
    place.mkdir(parents=True)
    yield place
    mounts.unmount_below(place)


def bind(source: Path, target: Path, **how: bool) -> None:
    ends = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (source, target)]
    try:
        mounts.bind(*ends, **{"readonly": False, "follow": False} | how)
    finally:
        for end in ends:
            os.close(end)


def test_a_directory_appears_with_what_is_mounted_in_it(closed: Path, place: Path) -> None:
    bind(closed, place)
    assert (place / "file").read_text() == "kept"
    assert (place / "inner/deep").read_text() == "kept too"
    (place / "new").write_text("x")
    assert (closed / "new").read_text() == "x"
    assert mounts.at_or_below(place) == [place, place / "inner"]


def test_what_is_read_only_cannot_be_written_however_deep(closed: Path, place: Path) -> None:
    bind(closed, place, readonly=True)
    for path in ("new", "inner/new"):
        with pytest.raises(OSError, match="Read-only"):
            (place / path).write_text("x")
    (closed / "new").write_text("x")


def test_a_directory_may_come_without_what_is_mounted_in_it(closed: Path, place: Path) -> None:
    bind(closed, place, inner=False)
    assert mounts.at_or_below(place) == [place]
    assert list((place / "inner").iterdir()) == []


def test_unmounting_leaves_the_directory_and_what_is_mounted_in_it(
    closed: Path, place: Path
) -> None:
    for follow in (False, True):
        bind(closed, place, follow=follow)
    for _ in range(2):
        mounts.unmount_below(place)
        assert mounts.at_or_below(place) == []
    assert (closed / "inner/deep").read_text() == "kept too"


def _mount(path: Path) -> None:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], check=True)


@pytest.mark.parametrize("follow", [False, True])
def test_what_is_mounted_later_appears_where_that_is_asked_for(
    tmp_path: Path, place: Path, follow: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    bind(source, place, follow=follow)
    later = source / "later"
    _mount(later)
    assert (place / "later" in mounts.at_or_below(place)) is follow
    subprocess.run(["umount", later], check=True)
    assert place / "later" not in mounts.at_or_below(place)
    later.rmdir()


def test_nothing_mounted_later_appears_where_nothing_inside_is_wanted(
    closed: Path, place: Path
) -> None:
    bind(closed, place, follow=True, inner=False)
    later = closed / "later"
    _mount(later)
    assert mounts.at_or_below(place) == [place]
    subprocess.run(["umount", later], check=True)


@pytest.mark.parametrize("follow", [False, True])
def test_what_is_mounted_in_a_directory_can_be_taken_away_by_its_owner(
    closed: Path, place: Path, follow: bool
) -> None:
    """As a kubelet does with another pod's volume: unmount it, and remove where it was."""
    volume = closed / "volume"
    _mount(volume)
    _mount(volume / "deeper")
    bind(closed, place, follow=follow)
    assert place / "volume/deeper" in mounts.at_or_below(place)
    for path in (volume / "deeper", volume):
        subprocess.run(["umount", path], check=True)
    volume.rmdir()
    assert mounts.at_or_below(place) == [place, place / "inner"]


def test_a_mount_that_no_path_reaches_goes_with_the_one_that_it_is_in(
    tmp_path: Path, place: Path
) -> None:
    """Who writes in a shared directory decides where a path inside it leads."""
    source = tmp_path / "source"
    (source / "way").mkdir(parents=True)
    bind(source, place)
    subprocess.run(["mount", "--make-private", place], check=True)
    _mount(place / "over")
    _mount(place / "way/inner")
    subprocess.run(["mount", "--move", place / "over", place / "way"], check=True)
    assert not (place / "way/inner").exists()
    mounts.unmount_below(place)
    assert mounts.at_or_below(place) == []


def test_removing_a_tree_spares_what_is_mounted_in_it(closed: Path, place: Path) -> None:
    bind(closed, place)
    remove_tree(place.parent)
    assert not place.parent.exists()
    assert (closed / "file").read_text() == "kept"
    assert (closed / "inner/deep").read_text() == "kept too"


def test_a_link_in_the_place_of_a_mount_is_not_followed(closed: Path, place: Path) -> None:
    """Who owns the directory may put one there at any time."""
    bind(closed, place)
    link = place.parent / "link"
    link.symlink_to(closed / "inner")
    mounts.unmount_below(link)
    remove_tree(place.parent)
    assert mounts.at_or_below(closed / "inner") == [closed / "inner"]


def test_a_link_on_the_way_to_a_tree_hides_no_mount(
    closed: Path, place: Path, tmp_path: Path
) -> None:
    """The data directory may be reached by one; the kernel's table has real paths."""
    (tmp_path / "linked").symlink_to(place.parent.parent)
    bind(closed, place)
    remove_tree(tmp_path / "linked" / place.parent.name)
    assert not place.parent.exists()
    assert (closed / "inner/deep").read_text() == "kept too"


def test_only_the_own_place_is_looked_at(closed: Path, place: Path) -> None:
    bind(closed, place)
    assert mounts.at_or_below(place.with_name("pla")) == []
