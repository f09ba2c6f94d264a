"""What a hypervisor knows of its domains' consumption."""

from attrs import frozen

from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class DomainStats:
    """One running domain, at one moment."""

    vm_id: str
    cpu_time: int
    """Nanoseconds of CPU that the emulator has used, guest and all."""
    pid: int | None = None
    """The emulator's process, where that is known."""
    vcpus: int = 0
    balloon: int = 0
    """Bytes of RAM the guest has now: less than at its start, or more."""
    guest_unused: int | None = None
    """Bytes the guest itself calls free, where its balloon driver tells."""
    guest_available: int | None = None
    """Bytes the guest itself calls its own."""
    guest_usable: int | None = None
    """Bytes the guest itself could give without swapping: free ones, and those of caches."""
    guest_caches: int | None = None
    """Bytes of the guest's that hold what its disks hold too."""
    guest_faults: int | None = None
    """Page faults in the guest."""
    guest_major_faults: int | None = None
    """Page faults in the guest that waited for a disk."""
    guest_told_at: int = 0
    """Nanoseconds since the epoch when the guest told the last of these; 0 if it never did."""
