"""What a VFIO group is in sysfs: its devices, and whether anybody else has a part in it.

Source: "VFIO - Virtual Function I/O" of the Linux documentation, sysfs-kernel-iommu_groups, and
sysfs-bus-pci for the lines of `resource`.
"""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.disk import HostDevice, HostDevices
from virtlet.model.launch import Visible

NODES = Path("/dev/vfio")
"""Directory of the groups' nodes."""
SYSTEM = Path("/sys")

_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BRIDGE = 0x06
"""PCI class of what leads to other devices: VFIO leaves it to the node."""
_MEMORY = 0x200
"""Flag of a region of memory."""
_REGIONS = 6
"""Regions of a device come first in `resource`; its ROM and those of bridges follow."""


def read_group(path: str, system: Path, ours: Collection[str] = ()) -> tuple[HostDevice, ...]:
    """The devices of a group that a VM may have, all of them.

    Args:
        path: of the group's node, for its number and messages.
        system: the kernel's directory, /sys but in tests.
        ours: addresses of devices that are to get their driver yet.

    Raises:
        InvalidArgument: it is no group that an IOMMU keeps from the others.
        FailedPrecondition: there is no such group, or somebody else has a part in it.
    """
    number = os.path.basename(path)
    if not re.fullmatch("[0-9]{1,9}", number):
        raise InvalidArgument(
            f"device {path} is no group of an IOMMU: a VM can have a group by its number, as "
            "/dev/vfio/7; have the device plugin give it, and the node's IOMMU be on "
            "(intel_iommu=on or amd_iommu=on of Linux)"
        )
    group = system / "kernel/iommu_groups" / number / "devices"
    try:
        members = sorted(group.iterdir())
    except OSError as error:
        raise FailedPrecondition(
            f"device {path}: IOMMU group {number} of the node: {error.strerror}: the device plugin "
            "names a group that is gone; restart it"
        ) from None
    found = tuple(filter(None, (_device(path, member, ours) for member in members)))
    if not found:
        raise FailedPrecondition(
            f"device {path}: IOMMU group {number} has no device that a VM can have"
        )
    return found


def check_free(group: Path) -> None:
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


def shown(groups: Iterable[HostDevices], container: Path, system: Path) -> tuple[Visible, ...]:
    """What an emulator sees of its groups: their nodes, and what sysfs says of their devices.

    Raises:
        FailedPrecondition: somebody else has a part in one by now.
    """
    return tuple(_shown(groups, container, system))


def _shown(groups: Iterable[HostDevices], container: Path, system: Path) -> Iterator[Visible]:
    yield Visible(path=container, writable=True)
    for group in groups:
        # Somebody may have given one of its devices to the node's drivers since.
        read_group(str(group.group), system)
        yield Visible(path=group.group, source=group.node, writable=True)
        for device in group.devices:
            link = system / "bus" / device.kind / "devices" / device.address
            yield Visible(path=link)
            yield Visible(path=link.resolve())


def _device(path: str, member: Path, ours: Collection[str]) -> HostDevice | None:
    """One device of a group; None for a bridge."""
    name, real = member.name, member.resolve()
    if _UUID.fullmatch(name):
        # It is below the device that it is a part of.
        return HostDevice(kind="mdev", address=name, numa_node=_numa_node(real.parent))
    if not _PCI.fullmatch(name):
        raise FailedPrecondition(
            f"device {path}: {name} of its IOMMU group is neither a PCI nor a mediated device, the "
            "kinds that a VM can have"
        )
    if int(_text(real / "class") or "0", 16) >> 16 == _BRIDGE:
        return None
    driver = (real / "driver").resolve().name if (real / "driver").exists() else ""
    if "vfio" not in driver and name not in ours:
        user = f"the driver {driver}" if driver else "no driver"
        raise FailedPrecondition(
            f"device {path}: its IOMMU group is shared with {name}, which has {user} and not "
            "vfio-pci, so it could be reached through what the VM gets: bind it to vfio-pci "
            f"(driverctl set-override {name} vfio-pci), or put the device into a slot of another "
            "group"
        )
    return HostDevice(
        kind="pci", address=name, numa_node=_numa_node(real), bars=_bars(real / "resource")
    )


def _numa_node(device: Path) -> int | None:
    node = int(_text(device / "numa_node") or "-1")
    return node if node >= 0 else None


def _bars(resource: Path) -> int:
    lines = [line.split() for line in _text(resource).splitlines()[:_REGIONS]]
    regions = [(int(start, 16), int(end, 16), int(flags, 16)) for start, end, flags in lines]
    return sum(end - start + 1 for start, end, flags in regions if flags & _MEMORY)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
