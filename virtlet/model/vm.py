"""A VM: the one container of a pod, and the machine it becomes."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from attrs import field, frozen

from virtlet.model.disk import Disk, Share, Volume
from virtlet.model.flavor import FROM_IMAGE, Flavor
from virtlet.model.image import Image
from virtlet.model.network import Network
from virtlet.model.pod import Pod
from virtlet.model.resources import Resources
from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class VmMetadata:
    """What the kubelet knows a container by, within its pod."""

    name: str
    attempt: int = 0


@frozen(kw_only=True, field_transformer=typed)
class Mount:
    """A directory or file of the node that the pod mounts."""

    guest_path: str
    host_path: str
    """"" where an image is mounted."""
    readonly: bool = False
    propagation: int = 0
    """CRI `MountPropagation`: 0 private, 1 host to container, 2 bidirectional."""
    image: str = ""
    """Name or id of the image that is mounted in the place of a path of the node, or ""."""
    user_image: str = ""
    """The name the user wrote, when the kubelet tells."""
    image_sub_path: str = ""
    """The directory of the image that is mounted, relative to its root; "" for all of it."""


def image_mount(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The innermost mount of an image that a path of the container is below."""
    above = [
        mount
        for mount in mounts
        if mount.image and PurePosixPath(path).is_relative_to(mount.guest_path)
    ]
    return max(above, key=lambda mount: len(mount.guest_path), default=None)


@frozen(kw_only=True, field_transformer=typed)
class Device:
    """A block device of the node that the pod is given."""

    guest_path: str
    host_path: str
    permissions: str = ""


@frozen(kw_only=True, field_transformer=typed)
class VolumeRequest:
    """One mount or device of a VM that some plugin has to serve."""

    role: str
    """`volume-N`, unique within the VM: fit for a file name."""
    source: Mount | Device
    image: Image | None = None
    """The image of a mount that has one. Its file is named after the role, in the VM's directory,
    which the core sees to."""


@frozen(kw_only=True, field_transformer=typed)
class VmConfig:
    """The container as the kubelet asked for it."""

    metadata: VmMetadata
    image: str
    """Image name or id, as given."""
    user_image: str = ""
    """The name the user wrote, when the kubelet tells."""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    annotations: Mapping[str, str] = field(factory=dict)
    log_path: str = ""
    """Relative to the pod's log directory."""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()


@frozen(kw_only=True, field_transformer=typed)
class Vm:
    """A VM that the manager has accepted; a restarted container is another Vm."""

    id: str
    """32 lowercase hexadecimal digits, which make a UUID."""
    pod: Pod
    config: VmConfig
    image: Image
    network: Network
    directory: Path
    """Private to this VM and its emulator's user; disks go here. What is mounted below it is
    unmounted by the core once the VM has ended."""
    created_at: int
    """Nanoseconds since the epoch."""
    uid: int | None = None
    """User of its own that its emulator runs as; None for the node's (`Node.user_of`)."""
    gid: int | None = None
    """Group of its own, where it has a user of its own."""
    volume_images: tuple[Image, ...] = ()
    """Images of its mounts, in their order, at the paths that are named after the mounts' roles."""

    @property
    def name(self) -> str:
        """`namespace/pod/container (attempt N)`, for messages."""
        meta = self.config.metadata
        return f"{self.pod.name}/{meta.name} (attempt {meta.attempt})"


@frozen(kw_only=True, field_transformer=typed)
class Console:
    """Where the emulator takes a VM's serial console to: two files that the core makes for the
    emulator's user before the VM starts, `NAME.out` and `NAME.in` in one directory."""

    output: Path
    """An ordinary file. The emulator writes to it what the guest prints, each byte once, at the
    end, and never waits for a reader."""
    input: Path
    """A FIFO. The emulator reads from it what is typed, and keeps it open while nobody types."""


@frozen(kw_only=True, field_transformer=typed)
class Template:
    """A VM that was frozen as it ran: its clones start where it stood, and share its memory."""

    directory: Path
    """Root's alone, for what the hypervisor keeps of it; removed by whoever made it."""
    frozen: bool = False
    """Whether VMs start from it; else the VM boots, and is to be frozen there."""
    credentials: Mapping[str, str] = field(factory=dict)
    """Text that its guest's systemd finds while it boots, by name; clones are given none."""


HIBERNATE = "VirtletHibernate"
"""Annotation of UpdateContainerResources: "true" hibernates the VM, "false" has it go on."""


@frozen(kw_only=True, field_transformer=typed)
class SavedMemory:
    """Where the memory of a checkpoint or a hibernated VM is, with vCPUs and devices."""

    path: Path
    """Root's alone."""
    offset: int
    """Where in the file it begins, which is where it was when it was written."""
    renamed: Mapping[str, str] | None = None
    """MAC addresses that the guest's NICs have, to those that they are to have, for a guest that
    takes a new identity; None for one that stays who it is."""


@frozen(kw_only=True, field_transformer=typed)
class Machine:
    """All that is known of a VM when its domain document is rendered and it is launched."""

    vm: Vm
    flavor: Flavor
    root: Disk
    volumes: tuple[Volume, ...]
    """In the order of the VM's mounts, then devices."""
    seed: Disk | None
    console: Console
    accelerator: str
    """As its hypervisor says in `HypervisorInfo`."""
    vmwrapper: Path
    """The program that the hypervisor starts; it becomes the emulator."""
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    """What vmwrapper needs to find us, for its environment; holds the one-time token."""
    agent_socket: Path | None = None
    """Unix socket of the guest agent's channel, where the flavor has a `guest_agent`."""
    withheld: int = 0
    """Bytes of its memory limit that the guest does not get, because the emulator needs them and
    the pod's overhead does not hold them."""
    template: Template | None = None
    """What it starts from, or becomes; None for a VM that boots, and that nothing starts from."""
    saved: SavedMemory | None = None
    """What it goes on from at its start, instead of booting. What is there is not trusted."""

    @property
    def network(self) -> Network:
        """The pod's network."""
        return self.vm.network

    @property
    def kernel(self) -> str:
        """The file of the kernel that is started without a boot loader; "" for none."""
        return self._boot_file("kernel")

    @property
    def initrd(self) -> str:
        """The file of its initial RAM disk, or ""."""
        return self._boot_file("initrd")

    def _boot_file(self, key: str) -> str:
        place: str = getattr(self.flavor, key)
        if not place.startswith(FROM_IMAGE):
            return place
        disks = (volume for volume in self.volumes if isinstance(volume, Disk))
        copies = [str(copy) for disk in disks if (copy := getattr(disk, key))]
        return copies[0] if copies else ""

    def share_socket(self, share: Share) -> Path:
        """Where the file server of a virtiofs share listens; a short path, as theirs have to be."""
        return self.runtime_directory / f"fs{self.volumes.index(share)}"

    def disk_socket(self, disk: Disk) -> Path:
        """Where the program that serves a disk listens."""
        return self.runtime_directory / f"disk{self.volumes.index(disk)}"

    @property
    def tpm_socket(self) -> Path:
        """Where the program that is the TPM listens, where the flavor has a `tpm`."""
        return self.runtime_directory / "tpm"

    @property
    def runtime_directory(self) -> Path:
        """Where the hypervisor's sockets of this VM go: a short path, because theirs have to be.

        The directory is root's. The emulator's user passes through it and makes nothing there, so
        make a socket in `Hypervisor.launch` and give its descriptor away. The core makes the
        directory before `define`, and removes it with all that is in it when the VM is removed.
        """
        return self.console.output.parent


@frozen(kw_only=True, field_transformer=typed)
class VmExit:
    """How a VM ended."""

    exit_code: int
    reason: str
    """CamelCase word: Completed, Error, OOMKilled, StartError, …"""
    message: str = ""
    finished_at: int = 0
    """Nanoseconds since the epoch."""
