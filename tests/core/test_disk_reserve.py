"""Space that is set aside for taking pods away."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlet.core.disk_reserve import STEP, DiskReserve
from virtlet.errors import ResourceExhausted

FILE = "reserve"
RESERVE = 4 * STEP


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the reserve and a bit."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={RESERVE + 2 * STEP}"]
    subprocess.run(["mount", *options, "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def reserve(disk: Path) -> DiskReserve:
    return DiskReserve(disk / FILE, disk / "virtlet.db", RESERVE)


def _fill(disk: Path, name: str = "filler") -> None:
    with (disk / name).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)


def test_a_full_disk_gives_back_so_much_at_each_end_until_nothing_is_left(
    reserve: DiskReserve, disk: Path
) -> None:
    reserve.fill()
    for number in range(RESERVE // STEP):
        _fill(disk, str(number))
        reserve.release()
        assert shutil.disk_usage(disk).free == STEP
        reserve.release()
        assert shutil.disk_usage(disk).free == STEP
    _fill(disk, "last")
    reserve.release()
    assert shutil.disk_usage(disk).free == 0


def test_nothing_new_is_made_until_the_space_can_be_set_aside_again(
    reserve: DiskReserve, disk: Path
) -> None:
    reserve.fill()
    _fill(disk)
    reserve.release()
    with pytest.raises(ResourceExhausted, match="no room for another VM.*free some of its space"):
        reserve.fill()
    (disk / "filler").unlink()
    reserve.fill()
    assert (disk / FILE).stat().st_size == RESERVE


def test_a_disk_with_space_gives_nothing_back(reserve: DiskReserve, disk: Path) -> None:
    reserve.fill()
    reserve.release()
    assert (disk / FILE).stat().st_size == RESERVE


def test_a_database_on_a_disk_of_its_own_has_its_own_space(tmp_path: Path, disk: Path) -> None:
    reserve = DiskReserve(tmp_path / FILE, disk / "virtlet.db", STEP)
    reserve.fill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", FILE]
    assert [path.name for path in disk.iterdir()] == [f"virtlet.db-{FILE}"]
