"""Images from a directory of the node, without a VM and with one."""

import lzma
import shutil
import struct
from pathlib import Path

import pytest
from virtlet_example_image import Plugin

from virtlet.api import FailedPrecondition, InvalidArgument, NotFound, parse_reference
from virtlet.testing import BootGuest, MakeNode, check_plugin, configured, pull_image

DISK = bytes(510) + b"\x55\xaa" + bytes(range(256)) * 256


def squashfs(size: int = 4096, major: int = 4) -> bytes:
    """The superblock of a squashfs image, and zeros."""
    return struct.pack("<4s24xHH8xQ", b"hsqs", major, 0, size).ljust(size, b"\0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The node's directory of images."""
    path = tmp_path / "local-images"
    path.mkdir()
    return path


@pytest.fixture
def plugin(tmp_path: Path, directory: Path) -> Plugin:
    """The plugin after the manager's start."""
    return configured(Plugin(), tmp_path, exampleImageDir=str(directory))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where pulled images are kept."""
    return tmp_path / "images"


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


@pytest.mark.parametrize("file", ["a.qcow2", "a.img", "a.img.xz", "a.qcow2.xz"])
def test_a_local_name_is_a_file_of_the_directory(
    plugin: Plugin, directory: Path, store: Path, file: str
) -> None:
    packed = file.endswith(".xz")
    (directory / file).write_bytes(lzma.compress(DISK) if packed else DISK)
    image = pull_image(plugin, "virtlet.cloud/local/a:latest", store)
    assert image.names == ("virtlet.cloud/local/a:latest",)
    assert image.path.read_bytes() == DISK


def test_an_unchanged_file_is_the_same_image_and_a_new_one_is_another(
    plugin: Plugin, directory: Path, store: Path
) -> None:
    (directory / "a.img").write_bytes(DISK)
    first = pull_image(plugin, "local/a", store)
    assert pull_image(plugin, "local/a", store).id == first.id
    (directory / "new").write_bytes(DISK + bytes(512))
    (directory / "new").replace(directory / "a.img")
    assert pull_image(plugin, "local/a", store).id != first.id


@pytest.mark.parametrize(
    "name",
    ["example.com/a", "locality/a", "local/../a", "local/a/b", "local/", "http://local/a"],
)
def test_other_names_are_left_to_others(plugin: Plugin, name: str) -> None:
    assert plugin.virtlet_resolve_image(parse_reference(name)) is None


def test_what_goes_wrong_is_said(plugin: Plugin, directory: Path, store: Path) -> None:
    with pytest.raises(NotFound, match=r"has no a\.qcow2"):
        pull_image(plugin, "local/a", store)
    (directory / "a.img.xz").write_bytes(lzma.compress(DISK)[:-20])
    with pytest.raises(FailedPrecondition, match="no whole xz"):
        pull_image(plugin, "local/a", store)
    (directory / "a.img").write_bytes(b"<html>")
    with pytest.raises(InvalidArgument, match="web page"):
        pull_image(plugin, "local/a", store)


def test_a_root_file_system_in_squashfs_is_an_image(
    plugin: Plugin, directory: Path, store: Path
) -> None:
    (directory / "a.squashfs").write_bytes(squashfs())
    image = pull_image(plugin, "local/a", store)
    assert (image.format, image.size, image.virtual_size) == ("squashfs", 4096, 4096)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (squashfs()[:40], "ends within its superblock"),
        (squashfs()[:-1], "shorter than it says"),
        (squashfs(major=3), "squashfs 3"),
    ],
)
def test_a_squashfs_that_is_damaged_is_refused(
    plugin: Plugin, directory: Path, store: Path, content: bytes, what: str
) -> None:
    (directory / "a.squashfs").write_bytes(content)
    with pytest.raises(InvalidArgument, match=f"image local/a: .*{what}"):
        pull_image(plugin, "local/a", store)


def test_a_guest_boots_from_a_local_image(
    virtlet_node: MakeNode, virtlet_guest: BootGuest, virtlet_image: str
) -> None:
    node = virtlet_node()
    (node.data_dir / "local-images").mkdir()
    shutil.copy(virtlet_image, node.data_dir / "local-images" / "small.qcow2")
    guest = virtlet_guest(node, image="virtlet.cloud/local/small")
    assert "local/small@sha256:" in guest.status.image_ref
    guest.wait_for_console("login:")
