"""The guest's NICs on the emulator's command line."""

import os
from collections.abc import Iterator
from pathlib import Path

from virtlet.errors import FailedPrecondition, PodBroken
from virtlet.host import netns
from virtlet.host.taps import open_tap
from virtlet.model.launch import LaunchFd, LaunchPart
from virtlet.model.network import Interface
from virtlet.model.vm import Machine

_FIRST_SLOT = 0x10
"""PCI slot of the first NIC: above those that libvirt gives out."""
_SLOTS = 16
_VHOST = Path("/dev/vhost-net")


def launch_part(machine: Machine) -> LaunchPart:
    """Arguments and open taps for all NICs of the VM.

    Raises:
        PodBroken: the namespace is gone.
        FailedPrecondition: a tap is gone or held by another process, or there are more NICs than
            slots.
    """
    path = machine.network.netns
    interfaces = machine.network.interfaces
    assert path is not None  # networks made here have one
    if not netns.exists(path):
        raise PodBroken(f"the network namespace {path} is gone: the pod is stopped; run it anew")
    if len(interfaces) > _SLOTS:
        raise FailedPrecondition(f"a VM can have {_SLOTS} NICs, not {len(interfaces)}")
    taps = netns.inside(path, lambda: _open_all([i.tap for i in interfaces]))
    fds = [LaunchFd(name=f"tap{number}", fd=descriptor) for number, descriptor in enumerate(taps)]
    vhosts = _vhosts(len(interfaces)) if machine.accelerator == "kvm" else []
    fds += [
        LaunchFd(name=f"vhost{number}", fd=descriptor) for number, descriptor in enumerate(vhosts)
    ]
    bus = "pci.0" if _has_plain_pci(machine.flavor.machine) else "pcie.0"
    arguments = [
        argument
        for number, interface in enumerate(interfaces)
        for argument in _arguments(number, interface, bus, bool(vhosts))
    ]
    return LaunchPart(arguments=tuple(arguments), fds=tuple(fds))


def _arguments(number: int, interface: Interface, bus: str, vhost: bool) -> Iterator[str]:
    accelerated = f",vhost=on,vhostfd={{fd:vhost{number}}}" if vhost else ""
    yield "-netdev"
    yield f"tap,id=net{number},fd={{fd:tap{number}}}{accelerated}"
    yield "-device"
    # No option ROM: VM pods boot from their root disk, never from the network.
    yield (
        f"virtio-net-pci,netdev=net{number},mac={interface.mac},host_mtu={interface.mtu},"
        f"bus={bus},addr={_FIRST_SLOT + number:#x},romfile="
    )


def _has_plain_pci(machine: str) -> bool:
    """Whether a machine type's first bus is `pci.0`; on others it is `pcie.0`."""
    return machine == "pc" or machine.startswith("pc-i440fx")


def _open_all(taps: list[str]) -> list[int]:
    opened: list[int] = []
    try:
        for tap in taps:
            opened.append(open_tap(tap))
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return opened


def _vhosts(count: int) -> list[int]:
    """A descriptor of the kernel's virtio-net back-end per NIC; none where the node lacks it."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        return []
    return opened
