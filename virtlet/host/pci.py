"""PCI devices in sysfs: which driver has one, and how it is lent to vfio-pci and given back.

Source: sysfs-bus-pci of the Linux documentation (driver_override, unbind, drivers_probe,
sriov_numvfs) and its "PCI Express I/O Virtualization Howto" (physfn, virtfn).
"""

import os
import re
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host.vfio_groups import SYSTEM

VFIO = "vfio-pci"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NO_OVERRIDE = "(null)"
_NOTHING = "\n"
"""What takes an override away; a write of no bytes reaches no driver."""


@frozen
class Driver:
    """What decides on a device's driver."""

    name: str
    """"" for none."""
    override: str = ""
    """The only driver that it may have, or ""."""


@frozen
class PciDevice:
    """One device of the node.

    Args:
        address: as sysfs has it, `0000:3b:02.1`.
        system: the kernel's directory, /sys but in tests.
    """

    address: str
    system: Path = SYSTEM

    @property
    def _path(self) -> Path:
        return self.system / "bus/pci/devices" / self.address

    @property
    def exists(self) -> bool:
        """Whether the node has it."""
        return bool(_ADDRESS.fullmatch(self.address)) and self._path.exists()

    @property
    def driver(self) -> Driver:
        """Its driver now."""
        link, override = self._path / "driver", _read(self._path / "driver_override")
        return Driver(
            name=link.resolve().name if link.exists() else "",
            override="" if override == _NO_OVERRIDE else override,
        )

    @property
    def group(self) -> str:
        """Number of its IOMMU group; "" where no IOMMU keeps it from the others."""
        link = self._path / "iommu_group"
        return link.resolve().name if link.exists() else ""

    @property
    def physical(self) -> "PciDevice | None":
        """The physical function, for a virtual one."""
        link = self._path / "physfn"
        return PciDevice(link.resolve().name, self.system) if link.exists() else None

    @property
    def number(self) -> int | None:
        """Which virtual function of its physical one it is."""
        if self.physical is None:
            return None
        for link in self.physical._path.glob("virtfn*"):
            if link.resolve() == self._path.resolve():
                return int(link.name.removeprefix("virtfn"))
        return None

    @property
    def virtual_functions(self) -> int:
        """How many it has."""
        return int(_read(self._path / "sriov_numvfs") or 0)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Its interfaces in the node's own network namespace."""
        return tuple(sorted(path.name for path in self._path.glob("net/*")))

    def lend(self) -> None:
        """Have vfio-pci take it from its driver; its interface is gone then.

        Raises:
            FailedPrecondition: the kernel refuses; `give_back` undoes what was done.
        """
        if not (self.system / "bus/pci/drivers" / VFIO).exists():
            raise FailedPrecondition(
                f"PCI device {self.address} is to be a VM's, and the node has not loaded the "
                "driver for it: modprobe vfio-pci, and name it in /etc/modules-load.d"
            )
        self._tell("driver_override", VFIO)
        self._probe()
        if self.driver.name != VFIO:
            raise FailedPrecondition(
                f"PCI device {self.address}: vfio-pci does not take it; the node's kernel log "
                "says why"
            )

    def give_back(self, before: Driver) -> None:
        """Have it as it was before `lend`. Idempotent; a device that is gone needs nothing.

        Raises:
            FailedPrecondition: the kernel refuses.
        """
        if not self.exists:
            return
        if self.driver.override != before.override:
            self._tell("driver_override", before.override or _NOTHING)
        if self.driver.name != before.name:
            self._probe()

    def _probe(self) -> None:
        """Give it the driver that is for it now."""
        if self.driver.name:
            self._tell("driver/unbind", self.address)
        write(self.system / "bus/pci/drivers_probe", self.address)

    def _tell(self, attribute: str, text: str) -> None:
        write(self._path / attribute, text)


def write(path: Path, text: str) -> None:
    """Write an attribute of sysfs, in one call as each has to be.

    Raises:
        FailedPrecondition: the kernel refuses.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write {text.strip()!r} to {path}: {error.strerror}"
        ) from None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
