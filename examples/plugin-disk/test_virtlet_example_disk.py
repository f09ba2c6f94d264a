"""Root disks that are full copies, without a VM and with one."""

import stat
import subprocess
from pathlib import Path

import pytest
from attrs import evolve
from virtlet_example_disk import Plugin

from virtlet.api import CommandError, Disk, Flavor, Vm
from virtlet.testing import BootGuest, check_plugin, configured, make_image, make_vm

SIZE = 3 << 20


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """The plugin after the manager's start."""
    return configured(Plugin(), tmp_path)


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    """A VM of a small qcow2 image."""
    raw, image, directory = tmp_path / "raw", tmp_path / "image.qcow2", tmp_path / "vm"
    raw.write_bytes(b"boot")
    with raw.open("r+b") as file:
        file.truncate(SIZE)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    directory.mkdir()
    return make_vm(directory, image=make_image(image, SIZE))


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_the_root_disk_is_a_copy_of_its_own(plugin: Plugin, vm: Vm) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk == Disk(path=vm.directory / "root.raw", format="raw")
    vm.image.path.unlink()
    content = disk.path.read_bytes()
    assert (len(content), content[:4]) == (SIZE, b"boot")


def test_only_the_emulator_s_user_can_read_it(plugin: Plugin, vm: Vm) -> None:
    plugin.node = evolve(plugin.node, emulator_uid=64055, emulator_gid=64055)
    found = plugin.virtlet_root_disk(vm, Flavor()).path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 64055, 64055)


@pytest.mark.parametrize(
    ("asked", "got"), [(1, SIZE), (1 << 40, 1 << 40), ((4 << 20) + 1, (4 << 20) + 512)]
)
def test_its_size_is_the_larger_of_image_and_flavor(
    plugin: Plugin, vm: Vm, asked: int, got: int
) -> None:
    path = plugin.virtlet_root_disk(vm, Flavor(root_size=asked)).path
    assert path.stat().st_size == got
    assert path.stat().st_blocks * 512 < 1 << 20


def test_a_broken_image_is_an_error_and_leaves_nothing(plugin: Plugin, vm: Vm) -> None:
    vm.image.path.write_bytes(b"QFI\xfb" + bytes(600))
    with pytest.raises(CommandError, match="qemu-img ended with status 1"):
        plugin.virtlet_root_disk(vm, Flavor())
    assert list(vm.directory.iterdir()) == []


def test_release_removes_it_with_a_record_or_without(plugin: Plugin, vm: Vm) -> None:
    for record in (plugin.virtlet_root_disk(vm, Flavor()), None):
        (vm.directory / "root.raw").touch()
        plugin.virtlet_release_root_disk(vm, record)
        plugin.virtlet_release_root_disk(vm, record)
        assert list(vm.directory.iterdir()) == []


def test_a_guest_boots_from_its_own_copy(virtlet_guest: BootGuest) -> None:
    guest = virtlet_guest()
    guest.wait_for_console("login:")
    assert [path.name for path in guest.directory.glob("root.*")] == ["root.raw"]
