"""A node's PCI devices as a tree of files, and a kernel that gives them drivers and interfaces.

Source: sysfs-bus-pci, sysfs-kernel-iommu_groups and the "PCI Express I/O Virtualization Howto" of
the Linux documentation.
"""

import os
import secrets
import stat
import threading
from pathlib import Path

from attrs import define, evolve, field

from virtlet.host import netns
from virtlet.host.commands import run
from virtlet.host.files import remove_tree
from virtlet.host.links import Link, Links

_NO_MAC = "00:00:00:00:00:00"


@define
class Tree:
    """A node's devices."""

    root: Path

    @property
    def system(self) -> Path:
        return self.root / "sys"

    @property
    def nodes(self) -> Path:
        return self.root / "dev/vfio"

    def pci(self, address: str, group: int, driver: str, **facts: str) -> Path:
        """A PCI device in a group; facts are files of its directory."""
        device = self.system / "devices/pci0000:64" / address
        device.mkdir(parents=True)
        facts = {"pci_class": "0x030200", "numa_node": "1", **facts}
        for name, text in facts.items():
            (device / name.removeprefix("pci_")).write_text(f"{text}\n")
        if driver:
            home = self.system / "bus/pci/drivers" / driver
            home.mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(home)
        self._join(device, "pci", group)
        return device

    def mdev(self, parent: Path, uuid: str, group: int) -> None:
        """A mediated device of a PCI device."""
        (parent / uuid).mkdir()
        self._join(parent / uuid, "mdev", group)

    def _join(self, device: Path, bus: str, group: int) -> None:
        members = self.system / f"kernel/iommu_groups/{group}/devices"
        for directory in (members, self.system / f"bus/{bus}/devices"):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / device.name).symlink_to(device)
        (device / "iommu_group").symlink_to(members.parent)
        self.node(str(group))

    def node(self, name: str) -> Path:
        """A character device that can be opened, in the place of VFIO's."""
        path = self.nodes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        return path


@define
class FakeKernel:
    """What Linux does with a network card's virtual functions, over a tree of files.

    Their interfaces are real ones, of kind veth, that are told as hardware (`told`). They come in
    the namespace of the thread that made the kernel.
    """

    tree: Tree
    namespaces: Path
    """Directory of the other namespaces where interfaces may be."""
    macs: dict[int, str] = field(factory=dict)
    """What the physical function has for its virtual ones."""
    log: list[str] = field(factory=list)
    """What was changed, as `NAME TEXT`."""
    fail_at: int = 0
    """Which change everything is killed before; 0 for none."""
    _home: Path = field(factory=lambda: Path(f"/proc/self/task/{threading.get_native_id()}/ns/net"))
    _owners: dict[str, str] = field(factory=dict)
    """Addresses of devices by the MAC addresses that their interfaces have had."""

    PHYSICAL = "0000:3b:00.0"

    def card(self, functions: int) -> None:
        """A card with virtual functions, each in a group of its own; their driver is iavf."""
        drivers = self.tree.system / "bus/pci/drivers"
        for name in ("vfio-pci", "iavf"):
            (drivers / name).mkdir(parents=True, exist_ok=True)
        drivers.with_name("drivers_probe").touch()
        card = self.tree.pci(self.PHYSICAL, 40, "ice", pci_class="0x020000")
        (card / "sriov_numvfs").write_text(f"{functions}\n")
        (card / "net/pf0").mkdir(parents=True)
        for number in range(functions):
            address = self.function(number)
            device = self.tree.pci(address, 50 + number, "", pci_class="0x020000")
            (device / "physfn").symlink_to(card)
            (card / f"virtfn{number}").symlink_to(device)
            (device / "driver_override").write_text("(null)\n")
            self.macs[number] = _NO_MAC
            self._bind(address)

    def function(self, number: int) -> str:
        """Address of a virtual function."""
        return f"0000:3b:02.{number}"

    def driver(self, number: int) -> str:
        """Its driver."""
        link = self._device(self.function(number)) / "driver"
        return link.resolve().name if link.exists() else ""

    def override(self, number: int) -> str:
        """The only driver that it may have."""
        return (self._device(self.function(number)) / "driver_override").read_text().strip()

    def write(self, path: Path, text: str) -> None:
        """An attribute is written."""
        self._count(f"{path.name} {text.strip()}")
        assert path.exists(), path
        match path.name:
            case "driver_override":
                path.write_text(text if text.strip() else "(null)\n")
            case "unbind":
                self._unbind(text)
            case "drivers_probe":
                self._bind(text)

    def function_macs(self, name: str) -> dict[int, str]:
        """What the physical function's interface tells."""
        assert name == "pf0"
        return dict(self.macs)

    def set_function_mac(self, name: str, number: int, mac: str) -> None:
        """The physical function is told a MAC address."""
        self._count(f"{name} {number} {mac}")
        self.macs[number] = mac

    def told(self, link: Link) -> Link:
        """An interface as the kernel would tell it if it were one of hardware."""
        address = self._owners.get(link.mac, "")
        return evolve(link, kind="", pci=address) if address else link

    def _count(self, change: str) -> None:
        self.log.append(change)
        if len(self.log) == self.fail_at:
            raise KeyboardInterrupt

    def _device(self, address: str) -> Path:
        return (self.tree.system / "bus/pci/devices" / address).resolve()

    def _unbind(self, address: str) -> None:
        device = self._device(address)
        (device / "driver/unbind").unlink()
        (device / "driver").unlink()
        remove_tree(device / "net")
        for path in (self._home, *self.namespaces.glob("*")):
            netns.inside(path, lambda: self._remove_interface(address))

    def _remove_interface(self, address: str) -> None:
        with Links() as net:
            for link in net.show():
                if self._owners.get(link.mac) == address:
                    net.delete(link.name)

    def _bind(self, address: str) -> None:
        device, number = self._device(address), int(address[-1])
        override = (device / "driver_override").read_text().strip()
        name = "iavf" if override == "(null)" else override
        (device / "driver").symlink_to(self.tree.system / "bus/pci/drivers" / name)
        (device / "driver/unbind").touch()
        if name != "iavf":
            return
        given = self.macs[number]
        mac = given if given != _NO_MAC else f"02:5f:{secrets.token_bytes(4).hex(':')}"
        self._owners[mac] = address
        (device / f"net/ens1v{number}").mkdir(parents=True)
        run(
            [
                "ip",
                "link",
                "add",
                f"ens1v{number}",
                "address",
                mac,
                "type",
                "veth",
                "peer",
                "name",
                f"wire{number}",
            ]
        )
