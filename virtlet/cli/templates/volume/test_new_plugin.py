"""The plugin without a VM and with one."""

from pathlib import Path

from new_plugin import Plugin

from virtlet.api import Disk, Mount, VolumeRequest
from virtlet.testing import BootGuest, check_plugin, configured, make_vm


def mounted(path: Path) -> VolumeRequest:
    """A file of the node that a pod mounts."""
    source = Mount(guest_path="/data", host_path=str(path))
    return VolumeRequest(role="volume-0", source=source)


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_disk_is_a_copy_and_nothing_is_left(tmp_path: Path) -> None:
    directory, file = tmp_path / "vm", tmp_path / "data.img"
    directory.mkdir()
    file.write_bytes(b"data" + bytes(508))
    plugin, vm = configured(Plugin(), tmp_path), make_vm(directory)
    disk = plugin.virtlet_volume(vm, mounted(file))
    assert isinstance(disk, Disk)
    assert disk.path.read_bytes() == file.read_bytes()
    plugin.virtlet_release_volume(vm, mounted(file), disk)
    plugin.virtlet_release_volume(vm, mounted(file), None)
    assert list(directory.iterdir()) == []


def test_other_mounts_are_left_to_other_plugins(tmp_path: Path) -> None:
    vm = make_vm(tmp_path)
    assert configured(Plugin(), tmp_path).virtlet_volume(vm, mounted(tmp_path / "a.txt")) is None


def test_a_guest_has_the_disk(virtlet_guest: BootGuest, tmp_path: Path) -> None:
    file = tmp_path / "data.img"
    file.write_bytes(bytes(1 << 20))
    guest = virtlet_guest(mounts={"/data": file})
    guest.wait_for_console("login:")
    assert (guest.directory / "volume-0").stat().st_size == 1 << 20
