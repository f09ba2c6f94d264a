"""The hooks of the devices that a device plugin or claim brings."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.host.files import make_device_node, remove_file
from virtlet.model.disk import HostDevice, HostDevices, Unneeded, Volume, host_devices
from virtlet.model.launch import LaunchPart, Visible
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.model.vm import Device, Machine, Vm, VolumeRequest
from virtlet.plugins.devices.vfio_groups import read_group


class Plugin:
    """Has a VM take over the devices of VFIO groups.

    Args:
        directory: of VFIO's nodes, /dev/vfio but in tests.
        system: the kernel's directory, /sys but in tests.
    """

    VIRTLET_HOOK_API = 1

    _node: Node

    def __init__(self, directory: Path = Path("/dev/vfio"), system: Path = Path("/sys")) -> None:
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
        _check_free(path)
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
        shown = [Visible(path=self._container, writable=True)]
        for group in groups:
            # Somebody may have given one of its devices to the node's drivers since.
            read_group(str(group.group), self._system)
            shown.append(Visible(path=group.group, source=group.node, writable=True))
            for device in group.devices:
                shown += self._facts(device)
        return LaunchPart(visible=tuple(shown))

    def _facts(self, device: HostDevice) -> Iterator[Visible]:
        link = self._system / "bus" / device.kind / "devices" / device.address
        yield Visible(path=link)
        yield Visible(path=link.resolve())


def _check_free(group: Path) -> None:
    """Refuse a group that somebody has open: the kernel gives it to one process at a time.

    Raises:
        FailedPrecondition: so it is, or it cannot be opened.
    """
    try:
        if not stat.S_ISCHR(group.stat().st_mode):
            raise FailedPrecondition(f"device {group} is no character device, as VFIO groups are")
        os.close(os.open(group, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPrecondition(
                f"device {group} is in use elsewhere on the node: another VM or program has it; "
                "`fuser` shows which"
            ) from None
        raise FailedPrecondition(
            f"device {group}: {error.strerror}: the manager has to be able to open it (see "
            "DeviceAllow= of its unit)"
        ) from None
