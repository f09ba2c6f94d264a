"""NICs whose hardware is the guest's: SR-IOV virtual functions, and whole network cards.

CNI leaves the interface of such hardware in the pod's namespace. The device goes from its driver to
vfio-pci, by which the interface is gone; the guest's own driver finds the hardware with the same
MAC address, which its physical function is told, and in the VLAN that CNI told the physical
function. To undo it the device gets its driver back, and the new interface is put into the pod's
namespace as CNI left it: that is where DEL looks for it.

A device that has vfio-pci already, of which CNI's result tells (`pciID`), is taken as it comes.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attrs import define, frozen

from virtlet.errors import FailedPrecondition
from virtlet.host import netns
from virtlet.host.files import make_device_node, remove_file
from virtlet.host.links import KernelRoute, Link, LinkError, Links
from virtlet.host.pci import Driver, PciDevice
from virtlet.host.vfio_groups import NODES, SYSTEM, check_free, read_group, shown
from virtlet.model.disk import HostDevice, HostDevices
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network, Nic
from virtlet.plugins.network_cni.bridging import restorable, restore_route
from virtlet.plugins.network_cni.guest_view import Sandbox

_log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds until a driver's interface must be there: some make it after they took the device."""


@frozen
class PassedNic:
    """What is needed to give a NIC's hardware back."""

    name: str
    """Of its interface in the pod."""
    address: str
    driver: Driver
    mac: str
    """The interface's, as are all of these."""
    mtu: int
    alias: str
    addresses: tuple[str, ...]
    routes: tuple[KernelRoute, ...]
    function_mac: str = ""
    """What its physical function had for it; "" for what is no virtual function."""


@define
class Hardware:
    """The node's PCI devices and VFIO groups.

    Args:
        nodes: directory of the groups' nodes, /dev/vfio but in tests.
        system: the kernel's directory, /sys but in tests.
    """

    nodes: Path = NODES
    system: Path = SYSTEM

    def device(self, address: str) -> PciDevice:
        """One of the devices."""
        return PciDevice(address, self.system)

    def plan(self, sandbox: Sandbox, network: Network) -> tuple[PassedNic, ...]:
        """Say what will be lent, from outside of the pod's namespace; nothing is changed.

        Args:
            sandbox: the namespace before anything is changed.
            network: the guest's view of it.

        Raises:
            FailedPrecondition: a device cannot be a guest's, is somebody else's, or its interface
                is gone.
        """
        links = {link.name: link for link in sandbox.links}
        found = []
        for nic in passed(network.nics):
            link = links.get(nic.name)
            self._check(nic, lent=link is None)
            node = self._node(nic.device)
            # One that has its own driver yet has no node, unless somebody still holds its group.
            if link is None or node.exists():
                check_free(node)
            if link is not None:
                found.append(self._planned(nic, link, sandbox))
        return tuple(found)

    def lend(self, nics: Sequence[PassedNic], network: Network) -> None:
        """Take the devices from their drivers.

        Raises:
            FailedPrecondition, LinkError: the kernel refuses; `give_back` undoes what was done.
        """
        macs = {nic.name: nic.mac for nic in network.nics}
        for nic in nics:
            device = self.device(nic.address)
            if nic.function_mac and nic.function_mac != macs[nic.name]:
                self._set_mac(device, macs[nic.name])
            device.lend()
        for each in passed(network.nics):
            check_free(self._node(each.device))

    def give_back(self, nics: Sequence[PassedNic], path: Path) -> None:
        """Undo `lend`, and put the interfaces into the pod's namespace if there is one. Idempotent.

        Raises:
            FailedPrecondition: a driver cannot be given back.
        """
        for nic in nics:
            device = self.device(nic.address)
            if not device.exists:
                continue
            try:
                # Before the driver comes, which asks for it.
                if nic.function_mac:
                    self._set_mac(device, nic.function_mac)
            except (FailedPrecondition, LinkError) as error:
                _log.warning("PCI device %s: %s", nic.address, error)
            device.give_back(nic.driver)
            try:
                self._put_back(nic, device, path)
            except (FailedPrecondition, LinkError, OSError) as error:
                # DEL has to cope with that, as it has where the namespace is gone.
                _log.warning("interface %s of PCI device %s: %s", nic.name, nic.address, error)

    def launch_part(
        self, network: Network, directory: Path, uid: int, gid: int
    ) -> LaunchPart | None:
        """Nodes of the VM's own for the groups of its NICs, shown where its emulator looks.

        Args:
            network: of the pod.
            directory: the VM's, with which the nodes go.
            uid: its emulator's user.
            gid: and group.

        Raises:
            FailedPrecondition: a device is not the VM's alone any more.
        """
        groups = []
        for number, nic in enumerate(network.nics):
            if nic.kind != "vfio":
                continue
            node, own = self._node(nic.device), directory / f"nic-{number}"
            devices = self._check(nic, lent=True)
            check_free(node)
            remove_file(own)
            make_device_node(node, own, uid, gid, readonly=False)
            groups.append(HostDevices(group=node, node=own, devices=devices))
        if not groups:
            return None
        return LaunchPart(visible=shown(groups, self.nodes / "vfio", self.system))

    def _node(self, address: str) -> Path:
        """The node of a device's group.

        Raises:
            FailedPrecondition: it is in none.
        """
        group = self.device(address).group
        if not group:
            raise FailedPrecondition(
                f"PCI device {address} is in no IOMMU group, so that nothing would keep a guest's "
                "hardware from the node's memory: turn the IOMMU on, in the firmware and by "
                "intel_iommu=on or amd_iommu=on of Linux"
            )
        return self.nodes / group

    def _check(self, nic: Nic, *, lent: bool) -> tuple[HostDevice, ...]:
        """Refuse a device that cannot be a guest's alone; else what is in its group: itself.

        Args:
            nic: whose device.
            lent: whether it has to have vfio-pci by now.

        Raises:
            FailedPrecondition: so it is.
        """
        device = self.device(nic.device)
        if not device.exists:
            raise FailedPrecondition(f"PCI device {nic.device} of NIC {nic.name} is gone")
        if device.virtual_functions:
            raise FailedPrecondition(
                f"NIC {nic.name} is the PCI device {nic.device}, which has virtual functions that "
                "would go with it: give the pod one of those"
            )
        node = self._node(nic.device)
        devices = read_group(str(node), self.system, () if lent else (nic.device,))
        others = [other.address for other in devices if other.address != nic.device]
        if others:
            raise FailedPrecondition(
                f"PCI device {nic.device} of NIC {nic.name} shares its IOMMU group with "
                f"{', '.join(others)}, and nobody else could have that: use a slot or a card that "
                "keeps them apart (ACS)"
            )
        return devices

    def _planned(self, nic: Nic, link: Link, sandbox: Sandbox) -> PassedNic:
        device = self.device(nic.device)
        function_mac = ""
        if device.physical is not None:
            macs = self._function_macs(device)
            if device.number not in macs:
                raise FailedPrecondition(
                    f"NIC {nic.name} is a virtual function of {device.physical.address}, which has "
                    "no interface on the node that tells its MAC address: see its driver"
                )
            function_mac = macs[device.number]
        elif nic.mac != link.mac:
            raise FailedPrecondition(
                f"NIC {nic.name} cannot have the MAC address {nic.mac}: it is the node's hardware, "
                f"which has {link.mac}"
            )
        return PassedNic(
            name=nic.name,
            address=nic.device,
            driver=device.driver,
            mac=link.mac,
            mtu=link.mtu,
            alias=link.alias,
            addresses=link.addresses,
            routes=tuple(restorable(sandbox.routes, link.name)),
            function_mac=function_mac,
        )

    def _function_macs(self, device: PciDevice) -> dict[int, str]:
        names = device.physical.interfaces if device.physical else ()
        if not names:
            return {}
        with Links() as net:
            return net.function_macs(names[0])

    def _set_mac(self, device: PciDevice, mac: str) -> None:
        """Have a virtual function's physical one give it a MAC address, if it has another."""
        number = device.number
        if device.physical is None or number is None or self._function_macs(device) == {}:
            return
        if self._function_macs(device).get(number) != mac:
            with Links() as net:
                net.set_function_mac(device.physical.interfaces[0], number, mac)

    def _put_back(self, nic: PassedNic, device: PciDevice, path: Path) -> None:
        if not netns.exists(path):
            return
        deadline = time.monotonic() + _PATIENCE
        while nic.name not in netns.inside(path, _names):
            names = device.interfaces
            try:
                if names:
                    with Links() as net:
                        net.move(names[0], path, nic.name)
            except LinkError:
                # udev gives a new interface another name at this moment.
                if time.monotonic() > deadline:
                    raise
            if not names and time.monotonic() > deadline:
                raise FailedPrecondition(f"the driver {nic.driver.name} makes none")
            time.sleep(0.02)
        netns.inside(path, partial(_configure, nic))


def passed(nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """Those whose hardware is the guest's."""
    return tuple(nic for nic in nics if nic.kind == "vfio")


def _names() -> set[str]:
    with Links() as net:
        return {link.name for link in net.show()}


def _configure(nic: PassedNic) -> None:
    with Links() as net:
        net.set(nic.name, mac=nic.mac, mtu=nic.mtu, alias=nic.alias, up=True)
        for address in nic.addresses:
            net.add_address(nic.name, address)
        for route in nic.routes:
            restore_route(net, route)
