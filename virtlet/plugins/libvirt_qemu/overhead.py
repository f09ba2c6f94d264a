"""The memory that QEMU needs beside the guest's RAM.

docs/node.md has the same formula, with what was measured; the RuntimeClasses of
deploy/runtimeclass.yaml follow it.
"""

from virtlet.model.disk import Disk
from virtlet.model.vm import Machine

_MIB = 1 << 20
BASE = 64 * _MIB
"""Heap, firmware, devices and the program's own pages, which any machine has, and I/O under way."""
PER_VCPU = 4 * _MIB
PER_DEVICE = 1 * _MIB
"""For each disk and NIC."""
DISK_PER_TABLE = 8192
"""Bytes of a qcow2 disk for each byte of its table that QEMU keeps, with clusters of 64 KiB."""
MOST_TABLE = 32 * _MIB
"""QEMU keeps no more of a disk's table."""
RAM_PER_TABLE = 256
"""Bytes of RAM for each byte of the page tables that map it: the node's, and KVM's."""
EMULATED_RAM_PER_TABLE = 64
"""The same without KVM, where QEMU has tables of its own."""
NOTES_PER_BUFFER = 8
"""Bytes of the translation buffer for each byte that QEMU notes of what is in it."""


def overhead(machine: Machine) -> int:
    """Bytes that a machine's emulator may come to need beside the guest's RAM."""
    flavor = machine.flavor
    disks = [machine.root, *(v for v in machine.volumes if isinstance(v, Disk))]
    if machine.seed is not None:
        disks.append(machine.seed)
    need = BASE + PER_VCPU * max(flavor.vcpus, flavor.max_vcpus)
    need += PER_DEVICE * (len(disks) + len(machine.network.nics))
    size = max(flavor.root_size, machine.vm.image.virtual_size)
    need += min(size // DISK_PER_TABLE, MOST_TABLE)
    if machine.accelerator == "kvm":
        return need + flavor.memory // RAM_PER_TABLE
    buffer = flavor.translation_buffer
    return need + buffer + buffer // NOTES_PER_BUFFER + flavor.memory // EMULATED_RAM_PER_TABLE
