"""One VM's consumption at one moment."""

from attrs import frozen


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
class VmSample:
    """A VM's processor, memory and disk."""

    vm_id: str
    at: int
    """Nanoseconds since the epoch."""
    cpu_time: int | None = None
    """Nanoseconds; never goes back within one VM. None when it is not known: the VM ended before
    this manager looked."""
    nano_cores: int = 0
    """Nanoseconds of CPU per second, over the time since the sample before."""
    resident: int = 0
    """Bytes of the emulator in memory: guest memory it has touched, and its own."""
    working_set: int = 0
    """Resident bytes without those that a file holds (clean page cache)."""
    limit: int = 0
    """Bytes of memory the pod may use; 0 when unlimited."""
    balloon: int | None = None
    """Bytes that the balloon leaves the guest of what it started with."""
    guest_available: int | None = None
    """Bytes that the guest's kernel manages, where its balloon driver tells."""
    guest_unused: int | None = None
    """Bytes of these that the guest's kernel has free, where its balloon driver tells."""
    page_faults: int = 0
    major_page_faults: int = 0
    processes: int = 0
    disk_bytes: int = 0
    """Allocated bytes of the VM's disks."""
    disk_inodes: int = 0
