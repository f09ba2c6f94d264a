import configparser
import importlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.model import make_config, make_node, make_vm
from tests.plugins.disk_qcow2.conftest import image as image
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.image import Image
from virtlet.model.vm import Vm

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-disk"
EMULATOR = 64055


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the package's entry point names, configured as the manager does."""
    setup = configparser.ConfigParser()
    setup.read(EXAMPLE / "setup.cfg")
    entry = setup["options.entry_points"]["virtlet"].partition("=")[2].strip()
    module_name, _, name = entry.partition(":")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    module = importlib.import_module(module_name)
    plugin = getattr(module, name)()
    plugin.virtlet_configure(make_config(), make_node(tmp_path, EMULATOR, EMULATOR))
    yield plugin
    del sys.modules[module_name]


@pytest.fixture
def vm(tmp_path: Path, image: Image) -> Vm:
    directory = tmp_path / "vm"
    directory.mkdir()
    return make_vm(directory, image=image)


def test_the_root_disk_is_a_copy_of_its_own(plugin: Any, vm: Vm) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk == Disk(path=vm.directory / "root.raw", format="raw")
    vm.image.path.unlink()
    content = disk.path.read_bytes()
    assert (len(content), content[:4]) == (vm.image.virtual_size, b"boot")


def test_only_the_emulator_s_user_can_read_it(plugin: Any, vm: Vm) -> None:
    found = plugin.virtlet_root_disk(vm, Flavor()).path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, EMULATOR, EMULATOR)


@pytest.mark.parametrize(
    ("asked", "got"), [(1, 3 << 20), (1 << 40, 1 << 40), ((4 << 20) + 1, (4 << 20) + 512)]
)
def test_its_size_is_the_larger_of_image_and_flavor(
    plugin: Any, vm: Vm, asked: int, got: int
) -> None:
    path = plugin.virtlet_root_disk(vm, Flavor(root_size=asked)).path
    assert path.stat().st_size == got
    assert path.stat().st_blocks * 512 < 1 << 20


def test_a_broken_image_is_an_error_and_leaves_nothing(plugin: Any, vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"QFI\xfb" + bytes(600))
    broken = evolve(vm, image=evolve(vm.image, path=tmp_path / "broken"))
    with pytest.raises(Exception, match="qemu-img ended with status 1"):
        plugin.virtlet_root_disk(broken, Flavor())
    assert list(vm.directory.iterdir()) == []


def test_release_removes_it_with_a_record_or_without(plugin: Any, vm: Vm) -> None:
    for record in (plugin.virtlet_root_disk(vm, Flavor()), None):
        (vm.directory / "root.raw").touch()
        plugin.virtlet_release_root_disk(vm, record)
        plugin.virtlet_release_root_disk(vm, record)
        assert list(vm.directory.iterdir()) == []
