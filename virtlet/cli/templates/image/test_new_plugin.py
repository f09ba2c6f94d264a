"""The plugin without a VM and with one."""

import shutil
from pathlib import Path

import pytest
from new_plugin import Plugin

from virtlet.api import NotFound, parse_reference
from virtlet.testing import BootGuest, MakeNode, check_plugin, configured, pull_image

DISK = bytes(510) + b"\x55\xaa" + bytes(512)


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_an_image_is_a_file_of_the_directory(tmp_path: Path) -> None:
    plugin = configured(Plugin(), tmp_path, newPluginDir=str(tmp_path))
    (tmp_path / "small.qcow2").write_bytes(DISK)
    image = pull_image(plugin, "virtlet.cloud/new-plugin/small", tmp_path / "store")
    assert image.path.read_bytes() == DISK
    with pytest.raises(NotFound, match=r"no .*/large\.qcow2"):
        pull_image(plugin, "new-plugin/large", tmp_path / "store")


def test_other_names_are_left_to_other_plugins(tmp_path: Path) -> None:
    plugin = configured(Plugin(), tmp_path)
    assert plugin.virtlet_resolve_image(parse_reference("debian")) is None


def test_a_guest_boots(
    virtlet_node: MakeNode, virtlet_guest: BootGuest, virtlet_image: str
) -> None:
    node = virtlet_node()
    (node.data_dir / "new-plugin").mkdir()
    shutil.copy(virtlet_image, node.data_dir / "new-plugin" / "guest.qcow2")
    virtlet_guest(node, image="virtlet.cloud/new-plugin/guest").wait_for_console("login:")
