"""The plugin without a VM and with one."""

from pathlib import Path

from new_plugin import Plugin

from virtlet.api import Disk, Flavor
from virtlet.testing import BootGuest, check_plugin, configured, make_image, make_vm


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_disk_is_a_copy_and_nothing_is_left(tmp_path: Path) -> None:
    image, directory = tmp_path / "image", tmp_path / "vm"
    image.write_bytes(b"boot" + bytes(508))
    directory.mkdir()
    plugin = configured(Plugin(), tmp_path)
    vm = make_vm(directory, image=make_image(image, 512, "raw"))
    disk = plugin.virtlet_root_disk(vm, Flavor(root_size=1024))
    assert disk == Disk(path=directory / "root.raw", format="raw")
    assert disk.path.read_bytes() == b"boot" + bytes(1020)
    plugin.virtlet_release_root_disk(vm, disk)
    plugin.virtlet_release_root_disk(vm, None)
    assert list(directory.iterdir()) == []


def test_a_guest_boots(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    guest.wait_for_console("login:")
    assert (guest.directory / "root.raw").exists()
