"""The machine a VM gets."""

from collections.abc import Mapping

from attrs import field, frozen

from virtlet.model.typed import typed

FROM_IMAGE = "image:"
"""How the place of a kernel begins that is in an image which the pod mounts."""


@frozen(kw_only=True, field_transformer=typed)
class Flavor:
    """Size and kind of a virtual machine."""

    vcpus: int = 1
    memory: int = 1 << 30
    """Bytes of guest RAM."""
    max_vcpus: int = 0
    """How many vCPUs a running VM can have; 0 or 1 means that `vcpus` is all it ever has."""
    max_memory: int = 0
    """Bytes of RAM a running VM can have; not more than `memory` means that it cannot grow."""
    cpu_model: str = ""
    """"" leaves the choice to the domain's renderer, `host-model` and `host-passthrough` pass the
    host's CPU on, anything else is the hypervisor's name of a model."""
    cpu_features: Mapping[str, str] = field(factory=dict)
    """Name of a CPU feature to `require` or `disable`, beside what the model has."""
    machine: str = "q35"
    firmware: str = "bios"
    """`bios`, `uefi`, or `uefi-secure`, which boots signed programs alone."""
    disk_bus: str = "scsi"
    """`scsi`, `virtio` or `nvme`."""
    disk_cache: str = ""
    """How the node caches what is on disks: `none`, `writethrough`, `writeback`, `directsync` or
    `unsafe`; "" leaves it to the hypervisor."""
    disk_io: str = ""
    """How the emulator reads and writes: `threads`, `native` (Linux AIO) or `io_uring`; "" leaves
    it to the hypervisor."""
    disk_iothreads: int = 0
    """Threads that serve the disks beside the emulator's own; 0 for none."""
    disk_iops: int = 0
    """Reads and writes a second of all disks together; 0 for no limit."""
    disk_iops_burst: int = 0
    """The same during a burst; 0 for none."""
    disk_bandwidth: int = 0
    """Bytes a second of all disks together; 0 for no limit."""
    disk_bandwidth_burst: int = 0
    """The same during a burst; 0 for none."""
    disk_burst_seconds: int = 1
    """How long a burst may last."""
    share_driver: str = ""
    """How directories are shared: `virtiofs` or `9p`; "" leaves it to whoever serves them."""
    root_size: int = 0
    """Bytes the root disk should have; 0, or less than the image, means the image's size."""
    system_uuid: str = ""
    """SMBIOS UUID; "" means the VM's own."""
    guest_agent: bool = True
    tpm: bool = False
    """Whether there is a TPM 2.0, whose state is kept as long as the VM."""
    guest_os: str = "linux"
    """`linux` or `windows`, which has a clock in local time and the enlightenments of Hyper-V."""
    video: str = ""
    """`virtio` or `vga`: a screen, which the hypervisor opens (`open_screen`); "" for none."""
    watchdog: bool = False
    """Whether there is a watchdog, which resets the guest."""
    nested: bool = False
    """Whether the guest may run VMs of its own on the host's CPU."""
    translation_buffer: int = 64 << 20
    """Bytes for translated code, which an emulator keeps where it does without KVM; it makes room
    by translating again, so that less of it makes large guests slower."""
    warm: bool = False
    """Whether the VM may start from the frozen memory of another one with the same machine."""
    cores: int = 0
    """Of a socket; 0 with `threads` 0 too makes each vCPU a socket, else it means 1."""
    threads: int = 0
    """Of a core, likewise. Sockets are as many as the most vCPUs fill."""
    sound: str = ""
    """`ich9` or `virtio`, which nobody hears; "" for none."""
    rng: bool = True
    """Whether there is a source of random numbers."""
    kernel: str = ""
    """Path on the node of a kernel that is started without a boot loader; or `image:` and its path
    in the container, below the mount of a volume of kind `image`; "" for none."""
    initrd: str = ""
    """Path of its initial RAM disk, likewise, or ""."""
    kernel_args: str = ""
    """Its command line."""
    device_rom: bool = True
    """Whether the firmware sees the ROMs of the node's PCI devices that the VM has."""
    boot: tuple[str, ...] = ("root",)
    """What the VM boots from, in this order: `root`, `disks` (volumes) and `cdroms` (volumes)."""
    on_reboot: str = "restart"
    """What a reboot of the guest is: `restart`, or `end`, which ends the VM."""
    on_panic: str = "end"
    """What a guest's panic is, where it tells: `end`, or `keep`, which leaves it standing still."""
    usb: bool = False
    """Whether there is a USB controller; a screen's pointer is there then."""
    vsock: bool = False
    """Whether guest and node can reach each other by vsock, past networks and their policies."""
    lock_memory: bool = False
    """Whether the emulator's memory is locked, so that the node swaps nothing of the guest's."""
    page_size: int = 0
    """Bytes of the huge pages that `memory` is on; 0 for ordinary pages."""
    dedicated_cpus: bool = False
    """Whether each vCPU has a CPU of the container's cpuset for itself; those that are left over
    are for the emulator's other threads."""
    numa: bool = False
    """Whether the guest sees the memory nodes that these CPUs are on, and has its memory there."""
    extras: Mapping[str, str] = field(factory=dict)
    """For plugins that work together, by names they agree on."""
