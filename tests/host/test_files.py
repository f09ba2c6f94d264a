import os
import stat
from pathlib import Path

import pytest

from virtlet.host.files import new_disk_file


def test_the_file_is_its_user_s_alone(tmp_path: Path) -> None:
    old = os.umask(0o777)
    try:
        with new_disk_file(tmp_path / "disk", 64055, 64056) as descriptor:
            os.write(descriptor, b"x")
    finally:
        os.umask(old)
    found = (tmp_path / "disk").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (64055, 64056, 0o600)
    assert found.st_size == 1


def test_what_was_there_is_replaced_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "disk").symlink_to("precious")
    with new_disk_file(tmp_path / "disk", os.getuid(), os.getgid()) as descriptor:
        os.write(descriptor, b"x")
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "disk").read_bytes() == b"x"


def test_an_error_leaves_no_file_and_no_descriptor(tmp_path: Path) -> None:
    opened = -1
    with pytest.raises(RuntimeError), new_disk_file(tmp_path / "disk", 0, 0) as descriptor:
        opened = descriptor
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        os.fstat(opened)
