"""What the emulator inherits at a start: sockets to listen at, and the taps of its NICs.

The sockets are made here, because the emulator's user may make nothing in their directory: so
nobody but the manager can connect, and no emulator can put a file of its own in their place.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from virtlet.api import (
    FailedPrecondition,
    LaunchFd,
    LaunchPart,
    Machine,
    Nic,
    netns,
    open_tap,
    remove_file,
)

COMMANDS = "qmp.sock"
"""For commands, one at a time, as QEMU serves one client of a socket."""
EVENTS = "events.sock"
"""For the thread that watches the VM."""


def launch_part(machine: Machine) -> LaunchPart:
    """Sockets and NICs with their arguments.

    Raises:
        FailedPrecondition: a NIC is of an unknown kind, or its tap cannot be opened.
    """
    fds: dict[str, int] = {}
    try:
        arguments = (*_sockets(machine, fds), *_nics(machine, fds))
    except BaseException:
        for descriptor in fds.values():
            os.close(descriptor)
        raise
    given = tuple(LaunchFd(name=name, fd=descriptor) for name, descriptor in fds.items())
    return LaunchPart(arguments=arguments, fds=given, required=True)


def _sockets(machine: Machine, fds: dict[str, int]) -> Iterator[str]:
    for name in (COMMANDS, EVENTS):
        fds[name] = _listen(machine.runtime_directory / name)
        yield from ("-chardev", _chardev(name), "-mon", f"chardev={name},mode=control")
    if machine.agent_socket is not None:
        fds["agent"] = _listen(machine.agent_socket)
        yield from ("-chardev", _chardev("agent"), "-device", "virtio-serial-pci")
        yield from ("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0")


def _chardev(name: str) -> str:
    return f"socket,id={name},fd={{fd:{name}}},server=on,wait=off"


def _listen(path: Path) -> int:
    """A descriptor that listens at a socket of root's own."""
    remove_file(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        return listener.detach()


def _nics(machine: Machine, fds: dict[str, int]) -> Iterator[str]:
    for number, nic in enumerate(machine.network.nics):
        if nic.kind != "tap":
            raise FailedPrecondition(
                f"NIC {nic.name} is of kind {nic.kind!r}, and the example hypervisor connects "
                "taps only: configure a network that gives the pod one"
            )
        queues = [f"tap{number}.{queue}" for queue in range(nic.queues)]
        for queue in queues:
            fds[queue] = _tap(machine.network.netns, nic)
        yield from ("-netdev", f"tap,id=net{number},fds=" + ":".join(f"{{fd:{q}}}" for q in queues))
        device = f"virtio-net-pci,netdev=net{number},mac={nic.mac},host_mtu={nic.mtu}"
        if nic.queues > 1:
            device += f",mq=on,vectors={2 * nic.queues + 2}"
        # Without an option ROM the firmware does not try to boot from the network.
        device += f",bootindex={nic.boot_order}" if nic.boot_order else ",romfile="
        yield from ("-device", device)


def _tap(namespace: Path | None, nic: Nic) -> int:
    """One queue of a NIC's tap, which is in the pod's network namespace where it has one."""
    if namespace is None:
        return open_tap(nic.device, multi_queue=nic.queues > 1)
    return netns.inside(namespace, lambda: open_tap(nic.device, multi_queue=nic.queues > 1))
