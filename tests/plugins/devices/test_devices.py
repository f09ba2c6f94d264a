"""VFIO groups of a node that is a tree of files, as sysfs has them."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.devices import Tree
from tests.fakes.model import make_config, make_node, make_vm
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host.files import remove_tree
from virtlet.launch.jail import make_jail
from virtlet.model.disk import HostDevice, HostDevices, Unneeded
from virtlet.model.launch import Visible
from virtlet.model.vm import Device, Mount, Vm, VolumeRequest
from virtlet.plugins.devices.plugin import Plugin
from virtlet.testing import make_machine

EMULATOR = 64055
GPU, SOUND, ROOT_PORT = "0000:65:00.0", "0000:65:00.1", "0000:64:00.0"
VGPU = "c60cc781-64a8-491e-b7a2-6a9b3c3a5d1a"
RESOURCE = """\
0x00000000b4000000 0x00000000b4ffffff 0x0000000000040200
0x0000382000000000 0x0000382fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000383000000000 0x0000383001ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000006000 0x000000000000607f 0x0000000000040101
0x00000000b5000000 0x00000000b507ffff 0x0000000000046200
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A GPU with its sound below a bridge, all in one group, and part of another GPU."""
    tree = Tree(tmp_path)
    tree.node("vfio")
    tree.pci(ROOT_PORT, 7, "pcieport", pci_class="0x060400")
    tree.pci(GPU, 7, "vfio-pci", resource=RESOURCE)
    tree.pci(SOUND, 7, "nvgrace-gpu-vfio-pci", pci_class="0x040300", numa_node="-1")
    tree.mdev(tree.pci("0000:b3:00.0", 9, "nvidia"), VGPU, 12)
    return tree


@pytest.fixture
def plugin(tree: Tree) -> Plugin:
    made = Plugin(tree.nodes, tree.system)
    made.virtlet_configure(make_config(()), make_node(tree.root, EMULATOR, EMULATOR))
    return made


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    directory = tmp_path / "vm"
    directory.mkdir()
    yield make_vm(directory)
    remove_tree(directory)


def serve(plugin: Plugin, vm: Vm, path: Path | str) -> Any:
    device = Device(guest_path=str(path), host_path=str(path), permissions="rw")
    return plugin.virtlet_volume(vm, VolumeRequest(role="volume-3", source=device))


def test_a_group_is_all_its_devices_by_a_node_of_the_vms_own(
    plugin: Plugin, vm: Vm, tree: Tree
) -> None:
    """A bridge stays the node's, and a driver of the device's maker that speaks VFIO is one too."""
    volume = serve(plugin, vm, tree.nodes / "7")
    assert volume.guest_path == str(tree.nodes / "7")
    group = volume.devices
    assert group == HostDevices(
        group=tree.nodes / "7",
        node=vm.directory / "volume-3",
        devices=(
            HostDevice(
                kind="pci", address=GPU, numa_node=1, bars=(16 << 20) + (64 << 30) + (32 << 20)
            ),
            HostDevice(kind="pci", address=SOUND),
        ),
    )
    own, given = group.node.stat(), group.group.stat()
    assert (own.st_rdev, own.st_uid, stat.filemode(own.st_mode)) == (
        given.st_rdev,
        EMULATOR,
        "crw-------",
    )
    assert given.st_uid == os.getuid()
    request = VolumeRequest(role="volume-3", source=Device(guest_path="/x", host_path="/x"))
    for _ in range(2):
        plugin.virtlet_release_volume(vm, request)
    assert not group.node.exists()
    assert group.group.exists()


def test_a_mediated_device_is_on_the_memory_node_of_what_it_is_a_part_of(
    plugin: Plugin, vm: Vm, tree: Tree
) -> None:
    """And the driver of the whole device is its own affair."""
    group = serve(plugin, vm, tree.nodes / "12").devices
    assert group.devices == (HostDevice(kind="mdev", address=VGPU, numa_node=1),)


def test_what_is_no_group_is_left_to_others(plugin: Plugin, vm: Vm, tree: Tree) -> None:
    container = serve(plugin, vm, tree.nodes / "vfio")
    assert isinstance(container, Unneeded)
    assert container.devices is None
    assert serve(plugin, vm, "/dev/fuse") is None
    mount = Mount(guest_path="/x", host_path=str(tree.nodes / "7"))
    assert plugin.virtlet_volume(vm, VolumeRequest(role="volume-0", source=mount)) is None


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("noiommu-0", InvalidArgument, "is no group of an IOMMU.*intel_iommu=on"),
        ("devices/vfio0", InvalidArgument, "a VM can have a group by its number"),
        ("99", FailedPrecondition, "IOMMU group 99 .* No such file .*: the device plugin names"),
        ("9", FailedPrecondition, "shared with 0000:b3:00.0, which has the driver nvidia"),
        ("20", FailedPrecondition, "shared with 0000:20:00.1, which has the driver e1000e and not"),
        ("21", FailedPrecondition, "shared with 0000:21:00.1, which has no driver and not vfio"),
        ("22", FailedPrecondition, "22 has no device that a VM can have"),
        ("23", FailedPrecondition, "serial0 of its IOMMU group is neither a PCI nor a mediated"),
    ],
)
def test_a_group_that_is_not_the_vms_alone_is_refused_before_anything_is_made(
    plugin: Plugin, vm: Vm, tree: Tree, name: str, kind: type[Exception], problem: str
) -> None:
    for group, driver in ((20, "e1000e"), (21, "")):
        tree.pci(f"0000:{group}:00.0", group, "vfio-pci")
        tree.pci(f"0000:{group}:00.1", group, driver)
    tree.pci("0000:22:00.0", 22, "pcieport", pci_class="0x060400")
    tree.pci("serial0", 23, "vfio-platform")
    tree.node(name)
    with pytest.raises(kind, match=problem) as caught:
        serve(plugin, vm, tree.nodes / name)
    assert str(tree.nodes / name) in str(caught.value)
    assert not list(vm.directory.iterdir())


def test_a_group_that_somebody_has_open_is_refused(
    plugin: Plugin, vm: Vm, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so; here something says it in the kernel's place."""
    taken, really = str(tree.nodes / "7"), os.open

    def refusing(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path) == taken:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return really(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(FailedPrecondition, match=f"device {re.escape(taken)} is in use elsewhere"):
        serve(plugin, vm, taken)
    assert not list(vm.directory.iterdir())


def test_a_jail_has_these_nodes_and_facts_alone(plugin: Plugin, vm: Vm, tree: Tree) -> None:
    groups = (serve(plugin, vm, tree.nodes / "7"), serve(plugin, vm, tree.nodes / "vfio"))
    machine = evolve(make_machine(vm.directory), volumes=groups)
    part = plugin.virtlet_launch(machine)
    assert part is not None
    links = {tree.system / "bus/pci/devices" / name for name in (GPU, SOUND)}
    assert {item.path for item in part.visible if item.writable} == {
        tree.nodes / "vfio",
        tree.nodes / "7",
    }
    assert {item.path for item in part.visible if not item.writable} == {
        *links,
        *(link.resolve() for link in links),
    }
    assert plugin.virtlet_launch(make_machine(vm.directory)) is None
    (tree.system / "bus/pci/devices" / SOUND / "driver").unlink()
    with pytest.raises(FailedPrecondition, match=f"shared with {SOUND}, which has no driver"):
        plugin.virtlet_launch(machine)


def test_a_jail_shows_a_source_in_the_place_of_what_the_node_has(tmp_path: Path) -> None:
    """The node's own stays closed to the emulator's user."""
    own = tmp_path / "own"
    os.mknod(own, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    place = Path("/dev/vfio/7")
    jail = make_jail([Visible(path=place, source=own, writable=True)], os.getpid())
    try:
        shown = os.fstat(jail.mounts[str(place)])
        assert (shown.st_rdev, shown.st_ino) == (os.makedev(1, 7), own.stat().st_ino)
        assert jail.writable == {str(place)}
    finally:
        jail.close()
    with pytest.raises(FailedPrecondition, match=f"{tmp_path}/gone, which the emulator needs"):
        make_jail([Visible(path=place, source=tmp_path / "gone", writable=True)], os.getpid())
