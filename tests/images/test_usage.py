import subprocess
from pathlib import Path

from virtlet.images.layout import measure


def test_what_is_mounted_in_a_directory_is_not_of_it(tmp_path: Path) -> None:
    """As a pod's shared volume is, in its VM's directory."""
    volume, place = tmp_path / "volume", tmp_path / "volumes/vm/volume-0"
    volume.mkdir()
    place.mkdir(parents=True)
    (volume / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "volumes/vm/disk").write_bytes(b"x" * 10_000)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "volumes")
    before = measure(linked)
    subprocess.run(["mount", "--bind", volume, place], check=True)
    try:
        after = measure(linked)
    finally:
        subprocess.run(["umount", place], check=True)
    assert 10_000 <= after.used_bytes <= before.used_bytes < 100_000
    assert after.inodes_used == before.inodes_used - 1
