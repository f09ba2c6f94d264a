"""Disks in the document: bus, target name and order."""

import string
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.model.disk import Disk
from virtlet.model.vm import Machine

_MOST = {"virtio": 20, "nvme": 20, "scsi": 26}
"""Disks per machine and bus, the root disk included; Virtlet's limits."""
_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}


@frozen
class DiskTarget:
    """One disk and where it is attached."""

    disk: Disk
    bus: str
    number: int
    """Counts the devices of its bus."""
    name: str
    """DiskTarget name."""
    boot: int = 0
    """Its turn when the machine looks for something to boot; 0 for none."""
    nvme: bool = False
    """Whether the guest gets an NVMe controller in the place of the virtio device; libvirt has no
    such disks before 11.5."""
    iothread: int = 0
    """Number of the I/O thread of a virtio disk; 0 for none."""

    @property
    def address(self) -> Mapping[str, int]:
        """Place on the bus, where libvirt would else add controllers of another model."""
        if self.bus == "virtio":
            return {}
        if self.bus == "ide":
            return {"controller": 0, "bus": self.number // 2, "target": 0, "unit": self.number % 2}
        return {"controller": 0, "bus": 0, "target": 0, "unit": self.number}

    @property
    def alias(self) -> str:
        """A name for the device that stays with its place."""
        return f"ua-disk-{self.number}"

    @property
    def serial(self) -> str:
        """An NVMe controller has one in any case."""
        return self.disk.serial or (f"disk-{self.number}" if self.nvme else "")

    @property
    def writable(self) -> bool:
        """Whether the guest can write it, and give back what it does not use."""
        return self.disk.kind == "disk" and not self.disk.readonly

    @property
    def kind(self) -> str:
        """libvirt's `type` of the disk."""
        if self.disk.served:
            return "network"
        return "block" if self.disk.block else "file"

    @property
    def attribute(self) -> str:
        """Attribute of `<source>` that holds the path."""
        return "dev" if self.disk.block else "file"


def targets(machine: Machine, cdrom_bus: str) -> tuple[DiskTarget, ...]:
    """All disks of a machine: the root, the volumes in their order, the seed.

    Args:
        machine: whose disks.
        cdrom_bus: bus of CD-ROM drives on its machine type: `sata` or `ide`.

    Raises:
        InvalidArgument: more disks than the bus takes.
    """
    chosen = machine.flavor.disk_bus
    nvme = chosen == "nvme"
    bus = "virtio" if nvme else chosen
    disks = [machine.root, *(v for v in machine.volumes if isinstance(v, Disk))]
    cdroms = [disk for disk in disks if disk.kind == "cdrom"]
    disks = [disk for disk in disks if disk.kind != "cdrom"]
    if machine.seed is not None:
        (cdroms if machine.seed.kind == "cdrom" else disks).append(machine.seed)
    if len(disks) > _MOST[chosen]:
        raise InvalidArgument(
            f"VM {machine.vm.name} has {len(disks)} disks; {chosen} takes {_MOST[chosen]}: use "
            "fewer volumes, or the annotation VirtletDiskDriver"
        )
    # A name serves one disk only, whatever the bus: CD-ROM drives come after the SCSI disks.
    first = len(disks) if bus == "scsi" and cdrom_bus == "sata" else 0
    turns = _turns(machine)
    threads = machine.flavor.disk_iothreads if chosen == "virtio" else 0
    return (
        *(
            DiskTarget(
                disk,
                bus,
                number,
                _name(_PREFIX[bus], number),
                boot=turns.get(disk.path, 0),
                nvme=nvme,
                iothread=number % threads + 1 if threads else 0,
            )
            for number, disk in enumerate(disks)
        ),
        *(
            DiskTarget(
                disk,
                cdrom_bus,
                number,
                _name(_PREFIX[cdrom_bus], first + number),
                boot=turns.get(disk.path, 0),
            )
            for number, disk in enumerate(cdroms)
        ),
    )


def _turns(machine: Machine) -> dict[Path, int]:
    """Path of each disk that the machine boots from to its turn; the seed is none of them."""
    volumes = [volume for volume in machine.volumes if isinstance(volume, Disk)]
    kinds = {
        "root": [machine.root],
        "disks": [disk for disk in volumes if disk.kind == "disk"],
        "cdroms": [disk for disk in volumes if disk.kind == "cdrom"],
    }
    ordered = [disk.path for source in machine.flavor.boot for disk in kinds[source]]
    return {path: turn for turn, path in enumerate(ordered, start=1)}


def _name(prefix: str, number: int) -> str:
    letters = string.ascii_lowercase
    if number < len(letters):
        return prefix + letters[number]
    return prefix + letters[number // len(letters) - 1] + letters[number % len(letters)]
