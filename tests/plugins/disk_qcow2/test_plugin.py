"""Root disks by qemu-img: overlays of images."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.model import make_config, make_image, make_node, make_vm
from virtlet.errors import FailedPrecondition
from virtlet.host.commands import run
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.vm import Vm
from virtlet.plugins.disk_qcow2.plugin import Plugin


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A qcow2 image of 3 MiB whose first bytes are known."""
    raw, path = tmp_path / "image.raw", tmp_path / "image.qcow2"
    raw.write_bytes(b"boot" + bytes((3 << 20) - 4))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])
    path.chmod(0o444)
    return make_image(path, 3 << 20)


EMULATOR = 64055
"""Some user that is not root."""


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    made = Plugin()
    made.virtlet_configure(make_config(), make_node(tmp_path, EMULATOR, EMULATOR))
    return made


@pytest.fixture
def vm(tmp_path: Path, image: Image) -> Vm:
    directory = tmp_path / "vm"
    directory.mkdir()
    return make_vm(directory, image=image)


def info(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(run(["qemu-img", "info", "--output=json", str(path)]))
    return found


def test_the_root_disk_is_an_overlay_that_states_its_backing(plugin: Plugin, vm: Vm) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk is not None
    assert disk.path == vm.directory / "root.qcow2"
    assert (disk.format, disk.backing, disk.readonly) == ("qcow2", vm.image.path, False)
    found = info(disk.path)
    assert found["format"] == "qcow2"
    assert found["backing-filename"] == str(vm.image.path)
    assert found["backing-filename-format"] == "qcow2"
    assert found["virtual-size"] == vm.image.virtual_size


def test_the_guest_sees_the_image_and_writes_to_its_own_file(plugin: Plugin, vm: Vm) -> None:
    before = vm.image.path.read_bytes()
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk is not None
    run(["qemu-io", "-c", "write -P 0x41 1M 64k", str(disk.path)])
    run(["qemu-io", "-c", "read -P 0x41 1M 64k", "-c", "read -P 0x62 0 1", str(disk.path)])
    assert vm.image.path.read_bytes() == before


def test_only_the_emulator_s_user_can_read_it(plugin: Plugin, vm: Vm) -> None:
    plugin.virtlet_root_disk(vm, Flavor())
    found = (vm.directory / "root.qcow2").stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == (EMULATOR, EMULATOR)


@pytest.mark.parametrize(
    ("asked", "got"),
    [(0, 3 << 20), (1 << 20, 3 << 20), (1 << 30, 1 << 30), ((4 << 20) + 1, (4 << 20) + 512)],
)
def test_its_size_is_the_larger_of_image_and_flavor(
    plugin: Plugin, vm: Vm, asked: int, got: int
) -> None:
    plugin.virtlet_root_disk(vm, Flavor(root_size=asked))
    assert info(vm.directory / "root.qcow2")["virtual-size"] == got


def test_a_large_disk_costs_next_to_nothing(plugin: Plugin, vm: Vm) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor(root_size=1 << 46))
    assert disk is not None
    assert disk.path.stat().st_blocks * 512 < 4 << 20


def test_a_raw_image_can_back_it(plugin: Plugin, vm: Vm, tmp_path: Path) -> None:
    raw = make_image(tmp_path / "image.raw", 3 << 20, "raw")
    disk = plugin.virtlet_root_disk(evolve(vm, image=raw), Flavor())
    assert disk is not None
    assert disk.backing_format == "raw"
    path = vm.directory / "root.qcow2"
    assert info(path)["backing-filename-format"] == "raw"
    run(["qemu-io", "-c", "read -P 0x62 0 1", str(path)])


def test_odd_names_of_directories_are_taken_as_they_are(plugin: Plugin, tmp_path: Path) -> None:
    odd = tmp_path / "a, b:c=d%20'"
    odd.mkdir()
    (odd / "image.qcow2").write_bytes((tmp_path / "image.qcow2").read_bytes())
    odd_vm = make_vm(odd, image=make_image(odd / "image.qcow2", 3 << 20))
    plugin.virtlet_root_disk(odd_vm, Flavor())
    found = info(odd / "root.qcow2")
    assert found["full-backing-filename"] == str(odd / "image.qcow2")


@pytest.fixture(autouse=True)
def _image_is_there(image: Image) -> None:
    """Every test has the image of the fixture in its directory."""


def test_making_it_again_starts_from_the_image(plugin: Plugin, vm: Vm) -> None:
    plugin.virtlet_root_disk(vm, Flavor())
    path = vm.directory / "root.qcow2"
    run(["qemu-io", "-c", "write -P 0x41 0 64k", str(path)])
    plugin.virtlet_root_disk(vm, Flavor())
    run(["qemu-io", "-c", "read -P 0x62 0 1", str(path)])


def test_a_link_left_in_the_directory_is_not_followed(
    plugin: Plugin, vm: Vm, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    (vm.directory / "root.qcow2").symlink_to(precious)
    plugin.virtlet_root_disk(vm, Flavor())
    assert precious.read_text() == "keep"
    assert precious.stat().st_uid == os.getuid()
    assert not (vm.directory / "root.qcow2").is_symlink()


def test_an_image_that_is_gone_is_refused_and_leaves_nothing(plugin: Plugin, vm: Vm) -> None:
    vm.image.path.unlink()
    with pytest.raises(FailedPrecondition, match=r"image sha256:0+ is not in the store.*pull it"):
        plugin.virtlet_root_disk(vm, Flavor())
    assert list(vm.directory.iterdir()) == []


def test_a_failing_qemu_img_leaves_nothing(
    plugin: Plugin, vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "qemu-img"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no space >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    with pytest.raises(Exception, match="qemu-img ended with status 1: no space"):
        plugin.virtlet_root_disk(vm, Flavor())
    assert list(vm.directory.iterdir()) == []


def test_release_removes_it_once_and_again(plugin: Plugin, vm: Vm) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    plugin.virtlet_release_root_disk(vm, disk)
    assert list(vm.directory.iterdir()) == []
    plugin.virtlet_release_root_disk(vm, disk)


def test_release_without_a_record_removes_what_a_crash_left(plugin: Plugin, vm: Vm) -> None:
    (vm.directory / "root.qcow2").write_bytes(b"half")
    plugin.virtlet_release_root_disk(vm, None)
    assert list(vm.directory.iterdir()) == []


def test_release_needs_no_directory(plugin: Plugin, vm: Vm) -> None:
    vm.directory.rmdir()
    plugin.virtlet_release_root_disk(vm, None)


def test_an_image_that_is_not_a_disk_is_left_to_other_plugins(plugin: Plugin, vm: Vm) -> None:
    kernel = evolve(vm, image=evolve(vm.image, format="kernel", virtual_size=0))
    assert plugin.virtlet_root_disk(kernel, Flavor()) is None
    assert list(vm.directory.iterdir()) == []
