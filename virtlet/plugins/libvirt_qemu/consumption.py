"""What emulators consume: the memory they may need beside the guest's RAM, and what they used.

docs/node.md has the formula of the memory, with measurements; the RuntimeClasses of
deploy/cluster/runtimeclass.yaml follow it. Statistics are those of virConnectGetAllDomainStats of
libvirt's API; memory is in KiB there, times in nanoseconds.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import libvirt

from virtlet.errors import Unavailable
from virtlet.model.disk import Disk, Share
from virtlet.model.stats import DomainStats
from virtlet.model.vm import Machine

log = logging.getLogger(__name__)

_MIB = 1 << 20
BASE = 64 * _MIB
"""Of any machine: heap, firmware, devices, the program's own pages, and I/O under way."""
PER_VCPU = 4 * _MIB
"""For each vCPU and each I/O thread."""
PER_DEVICE = 1 * _MIB
"""For each disk and NIC."""
PER_FILE_SERVER = 8 * _MIB
"""For each share over virtiofs, of a guest that remembers some ten thousand files of it."""
PER_DISK_SERVER = 64 * _MIB
"""For each disk that a program serves."""
TPM = 8 * _MIB
"""What swtpm takes."""
SCREEN = 32 * _MIB
"""What is on a screen, for the adapter and for its viewers."""
DISK_PER_TABLE = 8192
"""Bytes of a qcow2 disk for each byte of its table that QEMU keeps, with clusters of 64 KiB."""
MOST_TABLE = 32 * _MIB
"""Of a disk's table; QEMU keeps no more."""
RAM_PER_TABLE = 256
"""Bytes of RAM for each byte of the page tables that map it: the node's, and KVM's."""
EMULATED_RAM_PER_TABLE = 64
"""The same without KVM, where QEMU has tables of its own."""
NOTES_PER_BUFFER = 8
"""Bytes of the translation buffer for each byte of QEMU's metadata of it."""

# Not CPU_TOTAL: for it the driver probes all emulators of the node (1.5 s the first time) and
# keeps their capabilities (8 MB). The kernel tells CPU time as well.
WANTED = libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_BALLOON
FLAGS = (
    libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    # Of domains that are busy with another call, only what is known without waiting.
    | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
)
PATIENCE = 2.0
"""Seconds that emulators get to answer; they take milliseconds."""
MOST_SILENT = 16
"""Calls that may be left behind. A daemon has 20 threads for calls."""
_ENDED = ("Z", "X")
"""States of a process that has ended and is not reaped yet."""
_KIB = 1024
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def overhead(machine: Machine) -> int:
    """Bytes that a machine's emulator may come to need beside the guest's RAM."""
    flavor = machine.flavor
    disks = [machine.root, *(v for v in machine.volumes if isinstance(v, Disk))]
    if machine.seed is not None:
        disks.append(machine.seed)
    file_servers = [v for v in machine.volumes if isinstance(v, Share) and v.driver == "virtiofs"]
    threads = max(flavor.vcpus, flavor.max_vcpus) + flavor.disk_iothreads
    need = BASE + PER_VCPU * threads
    need += PER_DEVICE * (len(disks) + len(machine.network.nics))
    size = max(flavor.root_size, machine.vm.image.virtual_size)
    need += PER_FILE_SERVER * len(file_servers) + TPM * flavor.tpm
    need += PER_DISK_SERVER * sum(disk.served for disk in disks)
    need += SCREEN * bool(flavor.video)
    need += min(size // DISK_PER_TABLE, MOST_TABLE)
    if machine.accelerator == "kvm":
        return need + flavor.memory // RAM_PER_TABLE
    buffer = flavor.translation_buffer
    return need + buffer + buffer // NOTES_PER_BUFFER + flavor.memory // EMULATED_RAM_PER_TABLE


Figures = Mapping[str, DomainStats]
"""By VM id."""


class Measurement:
    """Asks for the statistics of all domains, and waits for no emulator that does not answer.

    libvirt asks one emulator after another, and waits for each as long as it takes. A call that is
    late is left behind. libvirt takes the silent domain for a busy one as long as that lasts, and
    the next call passes it over: it tells what is known of it without asking.

    Args:
        ask: the call.
        patience: seconds until it counts as late.
    """

    def __init__(self, ask: Callable[[], Figures], patience: float = PATIENCE) -> None:
        self._ask = ask
        self._patience = patience
        self._lock = threading.Lock()
        self._late: list[Future[Figures]] = []

    def take(self) -> Figures:
        """The statistics of now.

        Raises:
            Unavailable: too many emulators do not answer.
            VirtletError: what the call raises.
        """
        while True:
            answer: Future[Figures] = Future()
            self._check()
            threading.Thread(
                target=self._run, args=(answer,), name="libvirt-measure", daemon=True
            ).start()
            try:
                return answer.result(self._patience)
            except TimeoutError:
                log.warning("an emulator does not answer: its statistics are incomplete")
                with self._lock:
                    self._late.append(answer)

    def _check(self) -> None:
        with self._lock:
            self._late = [answer for answer in self._late if not answer.done()]
            if len(self._late) >= MOST_SILENT:
                raise Unavailable(
                    f"cannot measure VMs: {MOST_SILENT} emulators do not answer libvirt; stop "
                    "their pods"
                )

    def _run(self, answer: "Future[Figures]") -> None:
        try:
            answer.set_result(self._ask())
        except Exception as error:
            answer.set_exception(error)


def stats_of(vm_id: str, pid: int | None, values: Mapping[str, Any]) -> DomainStats | None:
    """The statistics of one domain, or None if its emulator has ended.

    Args:
        vm_id: of the VM.
        pid: of the emulator, if it is known.
        values: of libvirt's bulk statistics.
    """
    cpu_time = 0 if pid is None else _cpu_time(pid)
    if cpu_time is None:
        return None
    return DomainStats(
        vm_id=vm_id,
        cpu_time=cpu_time,
        pid=pid,
        vcpus=int(values.get("vcpu.current", 0)),
        # libvirt adds to it what the guest has of a virtio-mem device.
        balloon=int(values.get("balloon.current", 0)) * _KIB,
        guest_unused=_bytes(values.get("balloon.unused")),
        guest_available=_bytes(values.get("balloon.available")),
        guest_usable=_bytes(values.get("balloon.usable")),
        guest_caches=_bytes(values.get("balloon.disk_caches")),
        guest_faults=values.get("balloon.minor_fault"),
        guest_major_faults=values.get("balloon.major_fault"),
        guest_told_at=int(values.get("balloon.last-update", 0)) * 10**9,
    )


def _cpu_time(pid: int) -> int | None:
    """Nanoseconds of CPU a living process has used, in user and system mode; proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in _ENDED:
        return None
    return (int(fields[11]) + int(fields[12])) * _TICK


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * _KIB
