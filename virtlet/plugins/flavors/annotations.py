"""What a pod may say about its machine."""

import re
import uuid
from typing import Any, TypeVar

from virtlet.model.option import BYTES, Annotation, Kind, choice, integer
from virtlet.model.plain import quote
from virtlet.plugins.flavors.cpu import Cpu, parse_cpu

T = TypeVar("T")

DISK_BUSES = ("scsi", "virtio", "nvme")
FIRMWARES = ("bios", "uefi", "uefi-secure")
MOST_RATE = 10**12
"""Operations or bytes a second; QEMU takes a thousand times as many."""
LEAST_BANDWIDTH = 1 << 16
"""Bytes a second; with less a guest's first request takes longer than its driver waits."""
MAX_ROOT_SIZE = 1 << 46
"""64 TiB; with 64 KiB clusters the table of a larger disk alone takes megabytes."""

CPU_SETTING: Annotation[Cpu | None] = Annotation(
    name="VirtletLibvirtCPUSetting",
    kind=Kind(name="YAML of libvirt's <cpu> element", parse=parse_cpu),
    default=None,
    help="libvirt's `<cpu>` element as YAML, keys in any case; wins over VirtletCPUModel",
)


def _optional(kind: Kind[T]) -> Kind[T | None]:
    """As `kind`, and nothing for an empty text, which leaves the choice to the handler."""
    return Kind(name=kind.name, parse=lambda text: kind.parse(text) if text.strip() else None)


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise ValueError(
            f"{quote(text)} is no UUID: write 32 hexadecimal digits, with or without hyphens"
        ) from None


def _name(text: str) -> str:
    if text and not re.fullmatch("[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise ValueError(f"{quote(text)} cannot be the name of a flavor")
    return text


def disk_size(text: str) -> int:
    """Bytes of a disk.

    Raises:
        ValueError: no quantity, or over the largest disk served.
    """
    size = BYTES.parse(text.strip())
    if size > MAX_ROOT_SIZE:
        raise ValueError(f"{quote(text)} is more than the largest root disk, 64Ti")
    return size


def _bandwidth(text: str) -> int:
    size = BYTES.parse(text.strip())
    if not LEAST_BANDWIDTH <= size <= MOST_RATE:
        raise ValueError(f"{quote(text)} is not between 64Ki and 1T bytes a second")
    return size


RATE = integer(1, MOST_RATE)
BANDWIDTH = Kind(name="quantity", parse=_bandwidth)

FLAVOR: Annotation[str] = Annotation(
    name="VirtletFlavor",
    kind=Kind(name="name of a VirtletFlavor", parse=_name),
    default="",
    help="The machine that a VirtletFlavor describes, in place of the handler's; without it, the "
    "flavor that names the pod's handler, where there is one",
)
VCPU_COUNT: Annotation[int | None] = Annotation(
    name="VirtletVCPUCount",
    kind=_optional(integer(1, 255)),
    default=None,
    help="Number of vCPUs; 1 unless said",
)
MAX_VCPU_COUNT: Annotation[int | None] = Annotation(
    name="VirtletMaxVCPUCount",
    kind=_optional(integer(1, 255)),
    default=None,
    help="How many vCPUs the VM can have while it runs; above 1, their number follows the CPU "
    "limit. Without KVM a Linux guest uses only those that it starts with",
)
MAX_MEMORY: Annotation[int | None] = Annotation(
    name="VirtletMaxMemory",
    kind=_optional(BYTES),
    default=None,
    help="How far the memory of the VM can be raised while it runs",
)
CPU_MODEL: Annotation[str | None] = Annotation(
    name="VirtletCPUModel",
    kind=_optional(choice("host-model")),
    default=None,
    help="`host-model` gives the guest the host's CPU, without nested virtualisation unless the "
    "handler's flavor says `nested: true`; empty takes the handler's or the node's model",
)
FIRMWARE: Annotation[str | None] = Annotation(
    name="VirtletFirmware",
    kind=_optional(choice(*FIRMWARES)),
    default=None,
    help="What the VM boots by; bios unless said. With `uefi-secure` it boots what is signed for "
    "secure boot alone, and a pod cannot lower a handler's",
)
DISK_DRIVER: Annotation[str | None] = Annotation(
    name="VirtletDiskDriver",
    kind=_optional(choice(*DISK_BUSES)),
    default=None,
    help="Bus of the disks; scsi unless said",
)
DISK_IOPS: Annotation[int | None] = Annotation(
    name="VirtletDiskIOPS",
    kind=_optional(RATE),
    default=None,
    help="Reads and writes a second that all disks of the VM have together; not more than the "
    "handler's flavor gives",
)
DISK_IOPS_BURST: Annotation[int | None] = Annotation(
    name="VirtletDiskIOPSBurst",
    kind=_optional(RATE),
    default=None,
    help="The same for a moment, after a time with less; needs VirtletDiskIOPS",
)
DISK_BANDWIDTH: Annotation[int | None] = Annotation(
    name="VirtletDiskBandwidth",
    kind=_optional(BANDWIDTH),
    default=None,
    help="Bytes a second that all disks of the VM have together; not more than the handler's "
    "flavor gives",
)
DISK_BANDWIDTH_BURST: Annotation[int | None] = Annotation(
    name="VirtletDiskBandwidthBurst",
    kind=_optional(BANDWIDTH),
    default=None,
    help="The same for a moment, after a time with less; needs VirtletDiskBandwidth",
)
ROOT_VOLUME_SIZE: Annotation[int | None] = Annotation(
    name="VirtletRootVolumeSize",
    kind=_optional(Kind(name="quantity", parse=disk_size)),
    default=None,
    help="Size of the root disk; the image's own where that is larger",
)
SYSTEM_UUID: Annotation[str | None] = Annotation(
    name="VirtletSystemUUID",
    kind=_optional(Kind(name="UUID", parse=_uuid)),
    default=None,
    help="SMBIOS UUID the guest sees; a new one for every VM unless said",
)
ABOUT_MACHINES: tuple[Annotation[Any], ...] = (
    VCPU_COUNT,
    MAX_VCPU_COUNT,
    MAX_MEMORY,
    CPU_MODEL,
    CPU_SETTING,
    FIRMWARE,
    DISK_DRIVER,
    DISK_IOPS,
    DISK_IOPS_BURST,
    DISK_BANDWIDTH,
    DISK_BANDWIDTH_BURST,
    ROOT_VOLUME_SIZE,
)
"""Those that a fixed flavor refuses."""
ALL = (FLAVOR, *ABOUT_MACHINES, SYSTEM_UUID)
