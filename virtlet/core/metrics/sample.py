"""One VM's consumption at one moment."""

from attrs import frozen

from virtlet.core.metrics.process import ProcessUsage


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
