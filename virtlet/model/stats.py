"""What a hypervisor knows of its domains' consumption."""

from attrs import frozen


@frozen(kw_only=True)
class DomainStats:
    """One running domain, at one moment."""

    vm_id: str
    cpu_time: int
    """Nanoseconds of CPU that the emulator has used, guest and all."""
    pid: int | None = None
    """The emulator's process, where that is known."""
    vcpus: int = 0
    balloon: int = 0
    """Bytes of memory the guest has now."""
    guest_unused: int | None = None
    """Bytes the guest itself calls free, where its balloon driver tells."""
    guest_available: int | None = None
    """Bytes the guest itself calls its own."""
