"""All that a plugin imports: the one door for plugin authors.

`hookimpl` marks an implementation of a hook; the models are what hooks take and return, the errors
what they may raise; `evolve` copies a model with other values in some fields; `Links`, `netns`,
`run`, `open_tap`, `new_disk_file` and the file functions are the helpers of the host that are
promised with them. Everything else of Virtlet is private and may change with every release.
docs/hooks.md describes the hooks.
"""

from attrs import evolve

from virtlet import HOOK_API, hookimpl
from virtlet.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GuestNotReady,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PodBroken,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VirtletError,
)
from virtlet.host import netns
from virtlet.host.commands import CommandError, CommandLimits, run
from virtlet.host.confinement import Confinement
from virtlet.host.files import (
    make_private_directory,
    new_disk_file,
    remove_file,
    remove_tree,
    write_atomically,
)
from virtlet.host.links import KernelRoute, Link, LinkError, Links, Neighbour, open_tap
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import (
    Disk,
    GuestFiles,
    HostDevice,
    HostDevices,
    Share,
    Unneeded,
    Volume,
)
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import (
    Checkpoint,
    DomainCallback,
    DomainState,
    FilePart,
    Hypervisor,
    HypervisorHealth,
    HypervisorInfo,
    Observation,
    Resize,
)
from virtlet.model.image import (
    Conversion,
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
    TlsCertificate,
    Transport,
)
from virtlet.model.launch import Backend, LaunchFd, LaunchPart, Visible
from virtlet.model.network import Network, Nic, Route
from virtlet.model.node import Node
from virtlet.model.option import (
    BOOLEAN,
    BYTES,
    LINES,
    MAPPING,
    PATH,
    TEXT,
    TRUE_ONLY,
    WORDS,
    Annotation,
    Kind,
    Option,
    Settings,
    choice,
    integer,
)
from virtlet.model.pod import DnsConfig, Pod, PodConfig, PodMetadata, PortMapping, Profile
from virtlet.model.reference import Reference, parse_reference
from virtlet.model.resources import Resources
from virtlet.model.stats import DomainStats
from virtlet.model.vm import (
    Console,
    Device,
    Machine,
    Mount,
    SavedMemory,
    Template,
    Vm,
    VmConfig,
    VmExit,
    VmMetadata,
    VolumeRequest,
)

__all__ = [
    "BOOLEAN",
    "BYTES",
    "HOOK_API",
    "LINES",
    "MAPPING",
    "PATH",
    "TEXT",
    "TRUE_ONLY",
    "WORDS",
    "AlreadyExists",
    "Annotation",
    "Backend",
    "Checkpoint",
    "CloudInit",
    "CloudInitPart",
    "CommandError",
    "CommandLimits",
    "Confinement",
    "Console",
    "Conversion",
    "Credentials",
    "DeadlineExceeded",
    "Device",
    "Disk",
    "DnsConfig",
    "DomainCallback",
    "DomainState",
    "DomainStats",
    "Event",
    "EventKind",
    "ExecSession",
    "FailedPrecondition",
    "FetchedImage",
    "FilePart",
    "Flavor",
    "GuestCommand",
    "GuestFiles",
    "GuestNotReady",
    "GuestStreams",
    "HostDevice",
    "HostDevices",
    "Hypervisor",
    "HypervisorHealth",
    "HypervisorInfo",
    "Image",
    "ImageSource",
    "InvalidArgument",
    "KernelRoute",
    "Kind",
    "LaunchFd",
    "LaunchPart",
    "Link",
    "LinkError",
    "Links",
    "Machine",
    "Mount",
    "Neighbour",
    "Network",
    "Nic",
    "Node",
    "NotFound",
    "Observation",
    "Option",
    "PermissionDenied",
    "Pod",
    "PodBroken",
    "PodConfig",
    "PodMetadata",
    "PortMapping",
    "Profile",
    "RecognizedImage",
    "Reference",
    "Resize",
    "ResourceExhausted",
    "Resources",
    "Route",
    "SavedMemory",
    "Settings",
    "Share",
    "Staging",
    "Template",
    "TlsCertificate",
    "Transport",
    "Unavailable",
    "Unimplemented",
    "Unneeded",
    "VirtletError",
    "Visible",
    "Vm",
    "VmConfig",
    "VmExit",
    "VmMetadata",
    "Volume",
    "VolumeRequest",
    "choice",
    "evolve",
    "hookimpl",
    "integer",
    "make_private_directory",
    "netns",
    "new_disk_file",
    "open_tap",
    "parse_reference",
    "remove_file",
    "remove_tree",
    "run",
    "write_atomically",
]
