"""Disks, shared directories and files that a VM gets."""

from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class Disk:
    """A disk of a VM."""

    path: Path
    format: str = "qcow2"
    """`qcow2` or `raw`."""
    readonly: bool = False
    kind: str = "disk"
    """`disk` or `cdrom`."""
    block: bool = False
    """True when `path` is a block device."""
    backing: Path | None = None
    """The image an overlay stands on."""
    backing_format: str = "qcow2"
    """Of `backing`: `qcow2` or `raw`; the emulator does not guess it."""
    serial: str = ""
    """Shown to the guest as the disk's serial number; at most 20 characters."""
    guest_path: str = ""
    """Where the pod wants it in the guest: a mount point or a device path; "" for root and seed."""
    filesystem: bool = False
    """True when the guest has to mount it at `guest_path`."""
    offset: int = 0
    """Bytes at the start of `path` that the guest does not see; of a raw disk."""
    size: int = 0
    """Bytes from `offset` on that the guest sees; needed with an offset."""
    filesystem_type: str = ""
    """Of the file system, in the guest's words; "" has the guest find out."""
    mount_options: tuple[str, ...] = ()
    """Of the mount at `guest_path`, beside `ro` for a read-only disk."""
    sub_path: str = ""
    """The directory of the file system that is mounted, relative to its root; "" for all of it."""
    state_offset: int = 0
    """Where on `path` the hypervisor may keep what else the machine has: TPM, UEFI variables."""
    state_size: int = 0
    """Bytes for that, all zero at first; 0 for a disk that goes with its VM, or has no room."""
    kernel: Path | None = None
    """Of an image volume: a copy of the kernel that the flavor has its machine start."""
    initrd: Path | None = None
    """Likewise, of the initial RAM disk."""
    served: bool = False
    """True when a back-end of the launch serves it by NBD on `Machine.disk_socket`, as the export
    named like its serial number; raw, and `path` is where nothing is."""


@frozen(kw_only=True, field_transformer=typed)
class Share:
    """A directory of the node that the guest mounts over virtio."""

    host_path: Path
    guest_path: str
    tag: str
    """Mount tag; at most 31 characters."""
    readonly: bool = False
    driver: str = "9p"
    """`9p`, which the emulator serves as its own user, or `virtiofs`, which a file server of the
    built-in plugin `volumes` serves for all users."""


@frozen(kw_only=True, field_transformer=typed)
class GuestFiles:
    """Files of the node (a ConfigMap, a Secret, one file) that the seed writes into the guest."""

    host_path: Path
    guest_path: str
    mode: int | None = 0o644
    """Mode of each, root's in the guest; None gives each the mode, user and group that it has on
    the node."""


@frozen(kw_only=True, field_transformer=typed)
class HostDevice:
    """A device of the node that is the guest's alone."""

    kind: str
    """`pci`, or `mdev` for a mediated device."""
    address: str
    """As sysfs has it: `0000:65:00.0`, or the UUID of a mediated device."""
    numa_node: int | None = None
    """Memory node of the node's that it is on."""
    bars: int = 0
    """Bytes of memory that it shows to a machine."""


@frozen(kw_only=True, field_transformer=typed)
class HostDevices:
    """All devices of a VFIO group: they can reach each other, so a VM has them together."""

    group: Path
    """Where the emulator opens it, `/dev/vfio/7`."""
    node: Path
    """The VM's own node of the group, which is shown there; its emulator can open it."""
    devices: tuple[HostDevice, ...]


@frozen(kw_only=True, field_transformer=typed)
class Unneeded:
    """A mount that was looked at and means nothing inside a VM, with the reason."""

    guest_path: str
    reason: str
    devices: HostDevices | None = None
    """What the machine has in its place, and nothing mounts."""


Volume = Disk | Share | GuestFiles | Unneeded


def host_devices(volumes: Iterable[Volume]) -> tuple[HostDevices, ...]:
    """The groups of devices among a VM's volumes, in their order."""
    found = (volume.devices for volume in volumes if isinstance(volume, Unneeded))
    return tuple(group for group in found if group is not None)
