"""The hooks of the devices that a device plugin or claim brings."""

import os
from pathlib import Path

from virtlet import hookimpl
from virtlet.host.files import make_device_node, remove_file
from virtlet.host.vfio_groups import NODES, SYSTEM, check_free, read_group, shown
from virtlet.model.disk import HostDevices, Unneeded, Volume, host_devices
from virtlet.model.launch import LaunchPart
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.model.vm import Device, Machine, Vm, VolumeRequest


class Plugin:
    """Has a VM take over the devices of VFIO groups.

    Args:
        directory: of VFIO's nodes, /dev/vfio but in tests.
        system: the kernel's directory, /sys but in tests.
    """

    VIRTLET_HOOK_API = 1

    _node: Node

    def __init__(self, directory: Path = NODES, system: Path = SYSTEM) -> None:
        self._directory = directory
        self._container = directory / "vfio"
        self._system = system

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the node."""
        self._node = node

    @hookimpl
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Have a VFIO group's devices, with a node of the VM's own, or say why not."""
        source = request.source
        if not isinstance(source, Device):
            return None
        path = Path(os.path.normpath(source.host_path))
        if self._directory not in path.parents:
            return None
        if path == self._container:
            reason = "each emulator with a VFIO group has it"
            return Unneeded(guest_path=source.guest_path, reason=reason)
        devices = read_group(str(path), self._system)
        check_free(path)
        own = vm.directory / request.role
        make_device_node(path, own, *self._node.user_of(vm), readonly=False)
        return Unneeded(
            guest_path=source.guest_path,
            reason="its devices are the machine's",
            devices=HostDevices(group=path, node=own, devices=devices),
        )

    @hookimpl
    def virtlet_release_volume(self, vm: Vm, request: VolumeRequest) -> None:
        """Remove the VM's own node; the device stays with its driver, as it came."""
        remove_file(vm.directory / request.role)

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart | None:
        """Show the emulator its groups and what sysfs says of their devices, and no others."""
        groups = host_devices(machine.volumes)
        if not groups:
            return None
        return LaunchPart(visible=shown(groups, self._container, self._system))
