"""The hand-over to the emulator, which goes through vmwrapper."""

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class LaunchFd:
    """An open descriptor the emulator inherits.

    `{fd:NAME}` in an argument becomes its number in the emulator. The plugin that returns it gives
    it away: the core closes it once it is sent or the launch is off.
    """

    name: str
    fd: int


@frozen(kw_only=True, field_transformer=typed)
class Visible:
    """A file, directory, socket or device of the node that a jailed emulator sees at its path."""

    path: Path
    """Absolute. Links above it are followed; a link at its end is a link for the emulator too."""
    writable: bool = False
    """Whether it can be written; owner and mode of the file itself count all the same."""
    inner: bool = False
    """Whether what is mounted inside a directory is visible too, now and later."""
    optional: bool = False
    """Whether the launch goes on without it where it is not there."""
    source: Path | None = None
    """Absolute path of what is shown at `path`; None for what the node has there."""


@frozen(kw_only=True, field_transformer=typed)
class Backend:
    """A program that serves a device of the emulator on a unix socket: virtiofsd or swtpm, say.

    The core starts it before the emulator, with few capabilities, in the VM's cgroups and with its
    OOM score. It outlives the manager. The core ends it once the emulator is gone, and
    tells the pod's owner where it ends before.
    """

    name: str
    """Unique within the VM; fit for a file name."""
    argv: tuple[str, ...]
    """Program and arguments; `{socket}` becomes the number of the descriptor that it listens on."""
    socket: Path
    """Where the emulator's user, and nobody else, can connect; the core makes it and listens."""
    capabilities: tuple[str, ...] = ()
    """Those that it may use, in setpriv's words."""
    uid: int = 0
    """User that it runs as."""
    gid: int = 0
    files: int = 0
    """How many descriptors it may have, as far as the node lets it; 0 leaves that as it is."""
    loss: str
    """What the owner of a pod loses when it ends too early, and what helps, as a clause."""
    share: str = ""
    """Tag of the share that it serves, if it is a program that opens the root of what it serves a
    second time when the guest mounts it, as virtiofsd does."""
    network: bool = False
    """Whether it is in the node's network, as what speaks to a server has to be. It runs as a user
    of its own then, whatever `uid` says, may start threads alone, and reaches no other process."""
    documents: Mapping[str, bytes] = field(factory=dict, repr=False)
    """Files without a place on the node, by name, for it alone: `{document:NAME}` in an argument
    becomes the path at which it, and nobody else, can read one."""


@frozen(kw_only=True, field_transformer=typed)
class LaunchPart:
    """One plugin's contribution to a launch."""

    arguments: tuple[str, ...] = ()
    """Appended to the emulator's command line."""
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    fds: tuple[LaunchFd, ...] = ()
    cgroups: tuple[Path, ...] = ()
    """cgroup directories the emulator joins before it starts."""
    oom_score_adj: int | None = None
    """How the node's OOM killer sees the emulator, -1000 to 1000; of several parts the last counts,
    and None leaves it to the others."""
    emulator: Path | None = None
    """The program to exec instead of the default emulator; at most one part may say so. In a
    jail it may have to do without further processes (see `alone`)."""
    jail: bool = False
    """Whether the emulator is jailed: it sees nothing of the node but what the parts make visible,
    its own descriptors and `/proc/self`, and has no network. Of the hypervisor's part alone."""
    visible: tuple[Visible, ...] = ()
    """What the emulator sees in its jail; ignored without one."""
    io_uring: bool = False
    """Whether a jailed emulator may use io_uring, which is refused otherwise: its requests pass the
    filters of system calls by."""
    alone: bool = False
    """Whether a jailed emulator may start threads alone and no process, as QEMU needs none. Of the
    hypervisor's part alone."""
    required: bool = False
    """Whether a start fails if nobody fetched the launch meanwhile: the emulator was started past
    vmwrapper then, without jail and cgroup. Of the hypervisor's part alone."""
    backends: tuple[Backend, ...] = ()
    """Programs that serve its devices."""


ENV_SOCKET = "VIRTLET_LAUNCH_SOCKET"
"""Environment variable: where vmwrapper finds the launch server."""
ENV_VM = "VIRTLET_LAUNCH_VM"
"""Environment variable: whose launch it asks for."""
ENV_TOKEN = "VIRTLET_LAUNCH_TOKEN"
"""Environment variable: the one-time proof that it was started for us."""
