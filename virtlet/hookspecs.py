"""Every extension point of Virtlet: what a plugin may do.

Hooks are plain functions, called on worker threads, several at a time. A *first* hook asks the
plugins one after the other, in the order of the handler's `plugins:` and the built-in ones last,
until one does not return None ("not mine"). A *collect*, *all* or *each* hook calls every plugin in
the reverse order. So does an *adjust* hook, each time with the value as it is by then; a plugin
returns another one, or None. A *maker* hook is called on the plugin that made the value alone. A
hook that changes the world names its inverse, which must be idempotent: it is called with what the
hook returned, or with None when a crash or an error came in between, on the same plugin alone.
docs/hooks.md has the long form of each, with an example.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pluggy

from virtlet import PROJECT
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, Volume
from virtlet.model.event import Event
from virtlet.model.execution import ExecSession, GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import (
    Conversion,
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod
from virtlet.model.reference import Reference
from virtlet.model.vm import Machine, Vm, VmConfig, VolumeRequest

hookspec = pluggy.HookspecMarker(PROJECT)

# At start-up and shut-down


@hookspec
def virtlet_options() -> Sequence[Option[Any]]:
    """Declare settings of the manager (collect)."""
    raise NotImplementedError


@hookspec
def virtlet_annotations() -> Sequence[Annotation[Any]]:
    """Declare pod annotations; the core checks every pod against them (collect)."""
    raise NotImplementedError


@hookspec
def virtlet_configure(settings: Settings, node: Node) -> None:
    """Take the settings, before anything is served (each)."""


@hookspec
def virtlet_reconcile(pods: Sequence[Pod], vms: Sequence[Vm]) -> None:
    """Look after what is kept for these, and take away what is kept for any others (each)."""


@hookspec
def virtlet_shutdown() -> None:
    """Let go of threads and connections after serving; VMs go on running (each)."""


@hookspec
def virtlet_network_status() -> Sequence[str]:
    """Say why pods cannot get a network now; nothing to say means NetworkReady (collect)."""
    raise NotImplementedError


@hookspec(firstresult=True)
def virtlet_hypervisor() -> Hypervisor | None:
    """Provide the hypervisor that runs this handler's VMs (first, once per profile)."""


# Images


@hookspec(firstresult=True)
def virtlet_resolve_image(name: str, reference: Reference) -> ImageSource | None:
    """Say where the content of an image name is (first)."""


@hookspec(firstresult=True)
def virtlet_fetch_image(
    source: ImageSource, credentials: Credentials, staging: Staging
) -> FetchedImage | None:
    """Write the content of an image into the staging file (first)."""


@hookspec(firstresult=True)
def virtlet_unpack_image(name: str, head: bytes) -> Conversion | None:
    """Say which program unpacks an image while it is fetched, by how it begins (first)."""


@hookspec(firstresult=True)
def virtlet_recognize_image(name: str, file: Path) -> RecognizedImage | None:
    """Say what a fetched file is, before it enters the store (first)."""


# Pods


@hookspec(firstresult=True)
def virtlet_pod_flavor(pod: Pod) -> Mapping[str, Any] | None:
    """Say what a pod's machine is in place of its handler's `flavor:` section (first)."""


@hookspec
def virtlet_admit_pod(pod: Pod) -> None:
    """Raise InvalidArgument to refuse a pod before any effect (all)."""


@hookspec
def virtlet_admit_vm(pod: Pod, config: VmConfig) -> None:
    """Raise InvalidArgument to refuse a VM of a pod before any effect (all)."""


@hookspec(firstresult=True)
def virtlet_setup_network(pod: Pod) -> Network | None:
    """Give a pod its network (first). Inverse: virtlet_teardown_network."""


@hookspec
def virtlet_adjust_network(pod: Pod, network: Network) -> Network | None:
    """Change what virtlet_setup_network gave, before a guest learns of it (adjust)."""
    raise NotImplementedError


@hookspec
def virtlet_serve_network(pod: Pod, network: Network) -> None:
    """Connect guests to a network that is adjusted by now, and tell them of it (maker)."""


@hookspec
def virtlet_teardown_network(pod: Pod, network: Network | None) -> None:
    """Undo virtlet_setup_network; idempotent."""


# VMs


@hookspec(firstresult=True)
def virtlet_flavor(pod: Pod, config: VmConfig, image: Image) -> Flavor | None:
    """Choose the machine a VM gets (first)."""


@hookspec
def virtlet_adjust_flavor(
    pod: Pod, config: VmConfig, image: Image, flavor: Flavor
) -> Flavor | None:
    """Change what virtlet_flavor chose (adjust)."""
    raise NotImplementedError


@hookspec(firstresult=True)
def virtlet_root_disk(vm: Vm, flavor: Flavor) -> Disk | None:
    """Make the disk the VM boots from (first). Inverse: virtlet_release_root_disk."""


@hookspec
def virtlet_release_root_disk(vm: Vm, disk: Disk | None) -> None:
    """Undo virtlet_root_disk; idempotent."""


@hookspec(firstresult=True)
def virtlet_volume(vm: Vm, request: VolumeRequest) -> Volume | None:
    """Serve one mount or device (first). Inverse: virtlet_release_volume."""


@hookspec
def virtlet_release_volume(vm: Vm, request: VolumeRequest, volume: Volume | None) -> None:
    """Undo virtlet_volume; idempotent."""


@hookspec
def virtlet_cloud_init(vm: Vm, flavor: Flavor, volumes: Sequence[Volume]) -> CloudInitPart | None:
    """Contribute to what cloud-init in the guest is told (all)."""


@hookspec(firstresult=True)
def virtlet_seed(vm: Vm, cloud_init: CloudInit) -> Disk | None:
    """Write the disk that carries the cloud-init data (first). Inverse: virtlet_release_seed."""


@hookspec
def virtlet_release_seed(vm: Vm, disk: Disk | None) -> None:
    """Undo virtlet_seed; idempotent."""


@hookspec(firstresult=True)
def virtlet_render_domain(machine: Machine) -> Element | None:
    """Make the domain document that the hypervisor reads, as an element tree (first)."""


@hookspec
def virtlet_customize_domain(machine: Machine, domain: Element) -> None:
    """Edit the domain document in place (all)."""


@hookspec
def virtlet_launch(machine: Machine) -> LaunchPart | None:
    """Contribute arguments, environment, descriptors and cgroups to the emulator's start (all)."""


@hookspec(firstresult=True)
def virtlet_guest_exec(machine: Machine, command: GuestCommand) -> ExecSession | None:
    """Prepare to run a command inside a running guest (first)."""


# Observers


@hookspec
def virtlet_event(event: Event) -> None:
    """Hear of a committed change (observers; an error here is logged and goes no further)."""


HOOKS: Mapping[str, str] = {
    "virtlet_options": "collect",
    "virtlet_annotations": "collect",
    "virtlet_configure": "each",
    "virtlet_reconcile": "each",
    "virtlet_shutdown": "each",
    "virtlet_network_status": "collect",
    "virtlet_hypervisor": "first",
    "virtlet_resolve_image": "first",
    "virtlet_fetch_image": "first",
    "virtlet_unpack_image": "first",
    "virtlet_recognize_image": "first",
    "virtlet_pod_flavor": "first",
    "virtlet_admit_pod": "all",
    "virtlet_admit_vm": "all",
    "virtlet_setup_network": "first",
    "virtlet_adjust_network": "adjust",
    "virtlet_serve_network": "maker",
    "virtlet_teardown_network": "inverse",
    "virtlet_flavor": "first",
    "virtlet_adjust_flavor": "adjust",
    "virtlet_root_disk": "first",
    "virtlet_release_root_disk": "inverse",
    "virtlet_volume": "first",
    "virtlet_release_volume": "inverse",
    "virtlet_cloud_init": "all",
    "virtlet_seed": "first",
    "virtlet_release_seed": "inverse",
    "virtlet_render_domain": "first",
    "virtlet_customize_domain": "all",
    "virtlet_launch": "all",
    "virtlet_guest_exec": "first",
    "virtlet_event": "observers",
}
"""Hook name to how it is called."""

INVERSES: Mapping[str, str] = {
    "virtlet_setup_network": "virtlet_teardown_network",
    "virtlet_root_disk": "virtlet_release_root_disk",
    "virtlet_volume": "virtlet_release_volume",
    "virtlet_seed": "virtlet_release_seed",
}
"""Hook that changes the node to the one that undoes it."""
