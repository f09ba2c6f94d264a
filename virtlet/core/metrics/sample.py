"""What a VM and a pod consume at one moment, as the kernel counts it for the emulator's process and
the pod's interfaces.

Source: proc_pid_stat(5), proc_pid_status(5), proc_pid_fd(5) and proc_pid_limits(5); of interfaces
/proc/net/dev of proc(5), sixteen counters behind each name.
"""

import os
from pathlib import Path

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.host import netns
from virtlet.model.network import Network

PROC = Path("/proc")
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_MOST = 1 << 16
"""Bytes; these files have one or two thousand."""
_OPEN_FILES = "Max open files"


@frozen
class ProcessUsage:
    """What one process uses."""

    user: int
    """Nanoseconds of CPU, in steps of the kernel's clock tick."""
    system: int
    """Nanoseconds."""
    started: int
    """The tick of its start: no other process of the same id has it."""
    threads: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    resident: int = 0
    """Bytes."""
    file_backed: int = 0
    """Bytes of it that mapped files hold."""
    swapped: int = 0
    """Bytes of it that the node has swapped out."""


@frozen
class ProcessFiles:
    """What one process has open."""

    descriptors: int
    sockets: int | None
    """None without the capability to look (CAP_SYS_PTRACE)."""
    most: int | None
    """Descriptors that it may have; None for any number."""


def process_usage(pid: int) -> ProcessUsage | None:
    """What a process uses, or None when it is gone."""
    try:
        status = _text(pid, "status")
        # The name in parentheses may hold anything, spaces too: count from its end.
        stat = _text(pid, "stat").rpartition(")")[2].split()
    except OSError:
        return None
    sizes = dict.fromkeys(("VmRSS", "RssFile", "VmSwap"), 0)
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    # The list starts with field 3.
    return ProcessUsage(
        user=int(stat[11]) * _TICK,
        system=int(stat[12]) * _TICK,
        started=int(stat[19]),
        threads=int(stat[17]),
        minor_faults=int(stat[7]),
        major_faults=int(stat[9]),
        resident=sizes["VmRSS"],
        file_backed=sizes["RssFile"],
        swapped=sizes["VmSwap"],
    )


def process_files(pid: int) -> ProcessFiles | None:
    """What a process has open, or None when it is gone."""
    directory = f"{PROC}/{pid}/fd"
    try:
        names = os.listdir(directory)
        limits = _text(pid, "limits")
    except OSError:
        return None
    line = next((line for line in limits.splitlines() if line.startswith(_OPEN_FILES)), "")
    soft = line.removeprefix(_OPEN_FILES).split()[:1]
    most = int(soft[0]) if soft and soft[0].isdigit() else None
    try:
        sockets = sum(_target(f"{directory}/{name}").startswith("socket:") for name in names)
    except PermissionError:
        return ProcessFiles(len(names), None, most)
    return ProcessFiles(len(names), sockets, most)


def _text(pid: int, name: str) -> str:
    # Not by pathlib, which takes four times as long: this is read for every VM at each question.
    descriptor = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY)
    try:
        return os.read(descriptor, _MOST).decode(errors="replace")
    finally:
        os.close(descriptor)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # closed meanwhile


@frozen
class NicSample:
    """One interface of a pod, counted in the pod's namespace, from the pod's point of view."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    tx_packets: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0


@frozen
class PodSample:
    """A pod's network; it is there also while no VM runs."""

    pod_id: str
    at: int
    """Nanoseconds since the epoch."""
    nics: tuple[NicSample, ...] = ()


@frozen
class VmMemory:
    """A VM's memory as its limit counts it: what the guest uses of it, in bytes.

    What a limit without enough overhead leaves to the emulator is in use. Where the guest does not
    tell, it is what the emulator has in memory, as far as the limit goes.
    """

    usage: int = 0
    working_set: int = 0
    """Without what the guest could give back at once."""
    rss: int = 0
    """Without what the guest's disks hold, too."""
    cache: int | None = None
    """What the guest's disks hold, too."""
    page_faults: int | None = None
    major_page_faults: int | None = None
    by_guest: bool = False
    """Whether the guest tells."""


@frozen
class VmSample:
    """A VM's processor, memory and disk."""

    vm_id: str
    at: int
    """Nanoseconds since the epoch."""
    cpu_time: int | None = None
    """Nanoseconds; never goes back within one VM. None when it is not known: the VM ended before
    this manager looked."""
    nano_cores: int = 0
    """Nanoseconds of CPU per second, over a second or more until then."""
    memory: VmMemory = VmMemory()
    memory_at: int = 0
    """Nanoseconds since the epoch: when the memory was like that."""
    ram: int = 0
    """Bytes of RAM that the guest has."""
    limit: int = 0
    """Bytes of memory the container may use; 0 when unlimited."""
    balloon: int | None = None
    """Bytes of RAM that the guest has; None where that is not known."""
    guest_available: int | None = None
    """Bytes that the guest's kernel manages, where its balloon driver tells."""
    guest_unused: int | None = None
    """Bytes of these that the guest's kernel has free, where its balloon driver tells."""
    pid: int | None = None
    """The emulator's."""
    process: ProcessUsage | None = None
    """What the emulator uses of the node; None when it has ended or is not known."""
    processes: int = 0
    looked_at: int = 0
    """Nanoseconds since the epoch: when hypervisor and disks were looked at."""
    disk_bytes: int = 0
    """Allocated bytes of the VM's disks."""
    disk_inodes: int = 0


def nic_samples(network: Network) -> tuple[NicSample, ...]:
    """Counters of a pod's interfaces; none when its namespace is gone."""
    if network.netns is None:
        return ()
    try:
        text = netns.inside(network.netns, _read)
    except (FailedPrecondition, OSError):
        return ()
    return parse(text, tuple(nic.name for nic in network.nics))


def parse(text: str, names: tuple[str, ...]) -> tuple[NicSample, ...]:
    """The named interfaces of a /proc/net/dev table, in the order of the names."""
    found = {}
    for line in text.splitlines():
        name, colon, counters = line.partition(":")
        values = counters.split()
        if colon and name.strip() in names and len(values) >= 12:
            rx_bytes, rx_packets, rx_errors, rx_dropped = map(int, values[:4])
            tx_bytes, tx_packets, tx_errors, tx_dropped = map(int, values[8:12])
            found[name.strip()] = NicSample(
                name=name.strip(),
                rx_bytes=rx_bytes,
                rx_errors=rx_errors,
                tx_bytes=tx_bytes,
                tx_errors=tx_errors,
                rx_packets=rx_packets,
                tx_packets=tx_packets,
                rx_dropped=rx_dropped,
                tx_dropped=tx_dropped,
            )
    return tuple(found[name] for name in names if name in found)


def _read() -> str:
    # The thread's own view: /proc/net would show the namespace of the process's first thread.
    return Path("/proc/thread-self/net/dev").read_text()
