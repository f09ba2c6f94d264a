"""From a machine to QEMU's command line."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from virtlet.api import Disk, Machine, Share, Unimplemented


def command_line(machine: Machine) -> tuple[str, ...]:
    """Arguments of QEMU, but for those with descriptors that `launch.py` adds at each start.

    Raises:
        Unimplemented: the VM needs what this hypervisor does not have.
    """
    _refuse_what_is_missing(machine)
    flavor, kvm = machine.flavor, machine.accelerator == "kvm"
    cpu = flavor.cpu_model or ("host-model" if kvm else "")
    if cpu.startswith("host-"):
        cpu = "host" if kvm else "max"
    buffer = flavor.translation_buffer >> 20
    # A pipe of QEMU's is PATH.in, which it holds open, and PATH.out.
    console = str(machine.console.output.with_suffix("")).replace(",", ",,")
    return (
        # The UUID is the argument by which the emulator is found again.
        *("-name", f"virtlet-{machine.vm.id[:12]}", "-uuid", str(UUID(machine.vm.id))),
        *(("-smbios", f"type=1,uuid={flavor.system_uuid}") if flavor.system_uuid else ()),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        # Without graphics the firmware prints to the serial port.
        *("-machine", f"{flavor.machine},graphics=off"),
        *("-accel", "kvm" if kvm else f"tcg,tb-size={buffer}"),
        *(("-cpu", cpu) if cpu else ()),
        *("-smp", str(flavor.vcpus), "-m", f"{flavor.memory}B"),
        # A guest that has powered off, or panicked, stays until somebody has seen it.
        *("-no-shutdown", "-device", "pvpanic"),
        *("-chardev", f"pipe,id=console,path={console}", "-serial", "chardev:console"),
        *("-device", "virtio-balloon-pci,id=balloon,guest-stats-polling-interval=10"),
        *("-object", "rng-random,id=random,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=random"),
        *_disks(machine),
    )


def _refuse_what_is_missing(machine: Machine) -> None:
    missing = {
        "UEFI firmware": machine.flavor.firmware != "bios",
        "a TPM": machine.flavor.tpm,
        "vsock": machine.flavor.vsock,
        "locked memory": machine.flavor.lock_memory,
        "USB": machine.flavor.usb,
        "a CPU in libvirt's XML": "domain_cpu" in machine.flavor.extras,
        "a shared directory": any(isinstance(volume, Share) for volume in machine.volumes),
    }
    for what, wanted in missing.items():
        if wanted:
            raise Unimplemented(
                f"VM {machine.vm.name} asks for {what}, which the example hypervisor cannot "
                "give: take that out of the pod, or use a handler of the built-in hypervisor"
            )


def _disks(machine: Machine) -> Iterator[str]:
    """The root disk, the volumes and the seed, in this order."""
    disks = [machine.root, *(volume for volume in machine.volumes if isinstance(volume, Disk))]
    if machine.seed is not None:
        disks.append(machine.seed)
    yield from ("-device", "virtio-scsi-pci")
    hard_disk = "scsi-hd" if machine.flavor.disk_bus == "scsi" else "virtio-blk-pci"
    for number, disk in enumerate(disks):
        yield from ("-blockdev", json.dumps(_image(disk, f"disk{number}")))
        device = "scsi-cd" if disk.kind == "cdrom" else hard_disk
        device += f",drive=disk{number}"
        if disk.serial:
            device += f",serial={disk.serial}"
        if disk is machine.root:
            device += ",bootindex=1"
        yield from ("-device", device)


def _image(disk: Disk, node: str) -> dict[str, Any]:
    """A disk as QEMU's `blockdev-add` takes it."""
    readonly = disk.readonly or disk.kind == "cdrom"
    driver = "host_device" if disk.block else "file"
    image: dict[str, Any] = {
        "node-name": node,
        "driver": disk.format,
        "read-only": readonly,
        "discard": "unmap",
        "file": {"driver": driver, "filename": str(disk.path), "discard": "unmap"},
    }
    if disk.offset:
        image |= {"offset": disk.offset, "size": disk.size}
    if disk.backing is not None:
        backing = {"driver": "file", "filename": str(disk.backing)}
        # Named, because QEMU's guess would trust what the guest wrote there.
        image["backing"] = {"driver": disk.backing_format, "file": backing, "read-only": True}
        if disk.backing_format == "qcow2":
            image["backing"]["backing"] = None
    return image
