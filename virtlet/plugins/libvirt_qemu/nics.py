"""The guest's NICs on the emulator's command line.

They are appended behind the domain document, because libvirt would open the taps itself, in its own
network namespace. A template has none: its clones' taps are on their command lines, and the devices
come over the monitor, into ports that the template has.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from virtlet.errors import FailedPrecondition
from virtlet.host import netns
from virtlet.host.links import open_tap
from virtlet.model.launch import LaunchFd, LaunchPart
from virtlet.model.network import Nic
from virtlet.model.vm import Machine

_FIRST_SLOT = 0x10
"""PCI slot of the first NIC: above those that libvirt gives out."""
_SLOTS = 16
PORTS = 4
"""Of a template, and so NICs that a clone can have."""
_CHASSIS = 0x40
"""Of the first port: above those that libvirt gives out."""
_VHOST = Path("/dev/vhost-net")


def launch_part(machine: Machine) -> LaunchPart:
    """Arguments and open descriptors for all NICs of the VM.

    Raises:
        FailedPrecondition: a tap is gone or held by another process, a NIC is of a kind that is
            not known here, or there are more NICs than slots.
    """
    network = machine.network
    if len(network.nics) > _SLOTS:
        raise FailedPrecondition(f"a VM can have {_SLOTS} NICs, not {len(network.nics)}")
    for nic in network.nics:
        if nic.kind not in ("tap", "vfio"):
            raise FailedPrecondition(
                f"NIC {nic.name} is of kind {nic.kind!r}, and libvirt_qemu connects taps and PCI "
                "devices only: configure a network that gives the pod one"
            )
    # Those that are PCI devices are in the domain document.
    by_tap = [(number, nic) for number, nic in enumerate(network.nics) if nic.kind == "tap"]
    queues = [(number, nic) for number, nic in by_tap for _ in range(nic.queues)]
    taps = _open_taps(network.netns, [nic for _, nic in queues])
    vhosts = _open_vhosts(len(queues)) if machine.accelerator == "kvm" else []
    fds = [*_named("tap", taps), *_named("vhost", vhosts)]
    bus = "pci.0" if _has_plain_pci(machine.flavor.machine) else "pcie.0"
    arguments: list[str] = []
    if machine.template:
        for number in range(PORTS):
            slot, chassis = f"{_FIRST_SLOT + number:#x}", _CHASSIS + number
            port = f"pcie-root-port,id=port{number},bus={bus},addr={slot}"
            arguments += ("-device", f"{port},chassis={chassis},port={chassis}")
    for number, nic in by_tap:
        mine = [index for index, (owner, _) in enumerate(queues) if owner == number]
        arguments += _netdev(number, nic, mine, bool(vhosts))
        if not machine.template:
            place = {"bus": bus, "addr": f"{_FIRST_SLOT + number:#x}"}
            arguments += ("-device", _option(_device(number, nic, place)))
    return LaunchPart(arguments=tuple(arguments), fds=tuple(fds))


def plugged(machine: Machine) -> Sequence[Mapping[str, Any]]:
    """The devices of a clone's NICs, for its monitor."""
    return [
        {**_device(number, nic, {"bus": f"port{number}"}), "id": f"nic{number}"}
        for number, nic in enumerate(machine.network.nics)
    ]


def _netdev(number: int, nic: Nic, queues: Sequence[int], vhost: bool) -> Iterator[str]:
    several = "s" if nic.queues > 1 else ""
    netdev = f"tap,id=net{number},fd{several}={_references('tap', queues)}"
    if vhost:
        netdev += f",vhost=on,vhostfd{several}={_references('vhost', queues)}"
    yield "-netdev"
    yield netdev


def _device(number: int, nic: Nic, place: Mapping[str, str]) -> Mapping[str, Any]:
    properties: dict[str, Any] = {
        "driver": "virtio-net-pci",
        "netdev": f"net{number}",
        "mac": nic.mac,
        "host_mtu": nic.mtu,
        **place,
    }
    if nic.queues > 1:
        # A vector for each queue, one for the configuration and one for control.
        properties |= {"mq": True, "vectors": 2 * nic.queues + 2}
    # Without an option ROM the firmware does not try to boot from the network.
    return properties | ({"bootindex": nic.boot_order} if nic.boot_order else {"romfile": ""})


def _option(properties: Mapping[str, Any]) -> str:
    """A device as it is written on the command line."""
    driver, *rest = properties.items()
    shown = (f"{name}={'on' if value is True else value}" for name, value in rest)
    return ",".join((driver[1], *shown))


def _references(name: str, numbers: Sequence[int]) -> str:
    return ":".join(f"{{fd:{name}{number}}}" for number in numbers)


def _named(name: str, descriptors: Sequence[int]) -> Iterator[LaunchFd]:
    for number, descriptor in enumerate(descriptors):
        yield LaunchFd(name=f"{name}{number}", fd=descriptor)


def _has_plain_pci(machine: str) -> bool:
    """Whether a machine type's first bus is `pci.0`; on others it is `pcie.0`."""
    return machine == "pc" or machine.startswith("pc-i440fx")


def _open_taps(path: Path | None, queues: Sequence[Nic]) -> list[int]:
    """A descriptor for each queue, in the pod's namespace where it has one."""

    def work() -> list[int]:
        return _all_or_none(
            [partial(open_tap, nic.device, multi_queue=nic.queues > 1) for nic in queues]
        )

    return work() if path is None else netns.inside(path, work)


def _open_vhosts(count: int) -> list[int]:
    """A descriptor of the kernel's virtio-net back-end per queue; none where the node lacks it."""
    try:
        return _all_or_none([lambda: os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)] * count)
    except OSError:
        return []


def _all_or_none(openers: Sequence[Callable[[], int]]) -> list[int]:
    opened: list[int] = []
    try:
        for opener in openers:
            opened.append(opener())
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return opened
