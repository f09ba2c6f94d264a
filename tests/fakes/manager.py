"""The lifecycle on a node in memory: one plugin does everything, and fails when it is told to."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.fakes.hypervisor import EMPTY_DISK, FakeHypervisor, Faults
from tests.fakes.model import make_node
from tests.images.disks import raw_disk
from virtlet import hookimpl
from virtlet.console.log_writer import ConsoleLogs
from virtlet.core.disk_reserve import DiskReserve
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle import effects, exits, image_handlers, pods, recovery, vms
from virtlet.core.lifecycle.context import Context, KeyedLocks, Listener
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.core.lifecycle.journal import Journal
from virtlet.core.paths import Paths
from virtlet.core.store.records import PodRecord, VmRecord
from virtlet.core.store.store import Store
from virtlet.core.vm_consoles import VmConsoles
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import Images
from virtlet.launch.server import LaunchDoor
from virtlet.model.disk import Disk, Share
from virtlet.model.event import Event
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.launch import Backend, LaunchPart
from virtlet.model.network import Network, Nic
from virtlet.model.pod import Pod, PodConfig, PodMetadata
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Machine, Mount, Vm, VmConfig, VmMetadata, VolumeRequest

IMAGE = "tiny"
DISK = raw_disk("guest")


class Killed(BaseException):
    """The manager dies here: nothing of ours runs any more, and nothing is undone."""


@define
class Node:
    """What outlives a manager: domains, networks and disks."""

    root: Path
    faults: Faults = field(factory=Faults)
    networks: set[str] = field(factory=set)
    served: set[str] = field(factory=set)
    """Pods whose networks are served."""
    undone_by: list[Network | None] = field(factory=list)
    """What the network's inverse was told, each time."""
    disks: set[tuple[str, str]] = field(factory=set)
    nics: tuple[Nic, ...] = ()
    """What new networks have."""
    netns: Path | None = None
    """The namespace that new networks say they have."""
    adjust: Callable[[Network], Network | None] = lambda network: None
    """What is made of a new network."""
    pod_flavor: Mapping[str, Any] | None = None
    """What a new pod has in place of its handler's settings."""
    flavor: Callable[[VmConfig], Flavor] = lambda vm: Flavor(guest_agent=False)
    """The machine that a VM gets."""
    guest: Callable[[], bytes] | None = None
    """What any command in a guest prints; None for guests without an agent."""
    guest_code: int = 0
    """The exit code of any command in a guest."""
    shell: Callable[[bytes], int] | None = None
    """Runs a script that a guest is given as input; None for guests without a shell."""
    run_in_guest: Callable[[tuple[str, ...]], int] | None = None
    """Runs commands in guests by their arguments."""
    share: Share | None = None
    """What serves every mount."""
    overlays: bool = False
    """Whether root disks are overlays of images, and VMs have a seed."""
    backends: tuple[Backend, ...] = ()
    """Programs that serve a VM's devices."""
    hypervisor: FakeHypervisor = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.hypervisor = FakeHypervisor(self.faults)

    @property
    def left(self) -> list[str]:
        """What pods have left."""
        places = (self.root / "pods", self.root / "volumes", self.root / "run" / "vm")
        files = [str(path) for place in places if place.is_dir() for path in place.iterdir()]
        return [
            *files,
            *self.networks,
            *self.served,
            *map(str, self.disks),
            *self.hypervisor.domains,
        ]


class Plugin:
    """Every step of the way, in memory."""

    VIRTLET_HOOK_API = 1

    node: Node

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor:
        return self.node.hypervisor

    @hookimpl
    def virtlet_resolve_image(self, name: str) -> ImageSource:
        return ImageSource(name=name, url=f"fake:{name}")

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        staging.begin("", 0, len(DISK))
        staging.write(DISK)
        return FetchedImage(size=len(DISK))

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage:
        return RecognizedImage(format="raw", virtual_size=file.stat().st_size)

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        self.node.networks.add(pod.id)
        self.node.faults.strike("setup_network")
        return Network(netns=self.node.netns, nics=self.node.nics)

    @hookimpl
    def virtlet_pod_flavor(self) -> Mapping[str, Any] | None:
        return self.node.pod_flavor

    @hookimpl
    def virtlet_adjust_network(self, network: Network) -> Network | None:
        return self.node.adjust(network)

    @hookimpl
    def virtlet_serve_network(self, pod: Pod, network: Network) -> None:
        self.node.served.add(pod.id)
        self.node.faults.strike("serve_network")

    @hookimpl
    def virtlet_teardown_network(self, pod: Pod, network: Network | None) -> None:
        self.node.faults.strike("teardown_network")
        self.node.networks.discard(pod.id)
        self.node.served.discard(pod.id)
        self.node.undone_by.append(network)

    @hookimpl
    def virtlet_flavor(self, pod: object, config: VmConfig, image: object) -> Flavor:
        return self.node.flavor(config)

    @hookimpl
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Share | None:
        return self.node.share

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk:
        self.node.disks.add((vm.id, "root"))
        self.node.faults.strike("root_disk")
        (vm.directory / "root").write_bytes(EMPTY_DISK)
        backing = vm.image.path if self.node.overlays else None
        return Disk(path=vm.directory / "root", backing=backing)

    @hookimpl
    def virtlet_seed(self, vm: Vm) -> Disk | None:
        if not self.node.overlays:
            return None
        (vm.directory / "seed").touch()
        return Disk(path=vm.directory / "seed", format="raw", kind="cdrom")

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: object) -> None:
        self.node.faults.strike("release_root_disk")
        self.node.disks.discard((vm.id, "root"))

    @hookimpl
    def virtlet_launch(self) -> LaunchPart:
        return LaunchPart(backends=self.node.backends)

    @hookimpl
    def virtlet_guest_exec(
        self, machine: Machine, command: GuestCommand
    ) -> "Printed | Ran | Scripted | None":
        if command.stdin and self.node.shell:
            return Scripted(self.node.shell)
        if self.node.run_in_guest:
            return Ran(self.node.run_in_guest, command.argv)
        return Printed(self.node.guest, self.node.guest_code) if self.node.guest else None


class Printed(ExecSession):
    """A command that prints something and ends."""

    def __init__(self, answer: Callable[[], bytes], code: int) -> None:
        self._answer = answer
        self._code = code

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        streams.write_output(self._answer())
        return self._code


class Ran(ExecSession):
    """A command that a guest is given by its arguments."""

    def __init__(self, guest: Callable[[tuple[str, ...]], int], argv: tuple[str, ...]) -> None:
        self._guest = guest
        self._argv = argv

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        return self._guest(self._argv)


class Scripted(ExecSession):
    """A shell that runs its input."""

    def __init__(self, shell: Callable[[bytes], int]) -> None:
        self._shell = shell

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        script = b""
        while part := streams.read_input(1 << 16, 1.0):
            script += part
        return self._shell(script)


class NoLaunches:
    """The fake hypervisor starts nothing that would fetch a launch."""

    path = Path("/nowhere")
    cgroup_required = True

    def arm(
        self,
        vm_id: str,
        token: str,
        parts: list[tuple[str, LaunchPart]],
        door: LaunchDoor | None = None,
    ) -> None:
        pass

    def disarm(self, vm_id: str) -> bool:
        return True


class Told:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def listen(self, listener: Listener) -> None:
        raise AssertionError("nobody listens here")

    def tell(self, event: Event, handler: str, removed: PodRecord | None = None) -> None:
        self.events.append(event)


class Manager:
    """A manager's parts on a node, without a server; the calls are those of the lifecycle."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.points: list[str] = []
        self.at: dict[str, BaseException] = {}
        """Place in the journal to what is raised there, once."""
        here = make_node(node.root)
        registry = discover([EntryPoint("fake", "tests.fakes.manager:Plugin", "virtlet")])
        plugin = registry.manager.get_plugin("fake")
        assert isinstance(plugin, Plugin)
        plugin.node = node
        hooks = Hooks(registry)
        profiles = Profiles({"": {"plugins": ["fake"]}}, registry)
        self.store = Store(node.root / "db")
        self.console_logs = ConsoleLogs()
        self.console_logs.start()
        self.told = Told()
        image_store = ImageStore(
            Layout(node.root / "images", os.getgid()),
            in_use=lambda: {record.vm.image.id for record in self.store.vms.values()},
            recognize=image_handlers.recognize_by_anyone(hooks, profiles),
        )
        self.context = Context(
            node=here,
            store=self.store,
            hooks=hooks,
            profiles=profiles,
            hypervisors=Hypervisors(hooks, profiles),
            images=Images(image_store),
            launches=NoLaunches(),
            consoles=VmConsoles(self.console_logs, Paths(node.root), -1, -1, disabled=False),
            events=self.told,
            reserve=DiskReserve(Paths(node.root).reserve, node.root / "db", size=0),
            locks=KeyedLocks(hooks.watch.hanging),
        )
        self.context.journal = Journal(
            self.store, lambda row: effects.revert(self.context, row), self._reach
        )
        self.context.hypervisors.open(lambda seen: exits.on_change(self.context, seen))

    def _reach(self, point: str) -> None:
        self.points.append(point)
        if point in self.at:
            raise self.at.pop(point)

    def close(self) -> None:
        """Let go of what a dead process would let go of."""
        self.context.closing.set()
        self.context.backends.close()
        self.context.images.close()
        self.console_logs.stop()
        self.store.close()

    def restarted(self, patience: float = recovery.UNDO_PATIENCE) -> "Manager":
        """The next manager on the node, after it has recovered."""
        self.close()
        successor = Manager(self.node)
        recovery.remove_orphaned_directories(successor.store, successor.context.paths)
        recovery.recover(successor.context, patience)
        return successor

    # What a kubelet asks for

    def run(self, name: str = "web", attempt: int = 0) -> str:
        """RunPodSandbox."""
        metadata = PodMetadata(name=name, uid=f"uid-{name}", namespace="default", attempt=attempt)
        logs = str(self.node.root / "logs" / name)
        return pods.run_pod(self.context, PodConfig(metadata=metadata, log_directory=logs), "")

    def create(self, pod_id: str, attempt: int = 0, mounts: Sequence[str] = ()) -> str:
        """PullImage and CreateContainer."""
        image_handlers.pull(self.context, parse_reference(IMAGE), Credentials())
        config = VmConfig(
            metadata=VmMetadata(name="guest", attempt=attempt),
            image=IMAGE,
            mounts=tuple(Mount(guest_path=path, host_path=path) for path in mounts),
            log_path=f"guest/{attempt}.log",
        )
        return vms.create_vm(self.context, pod_id, config)

    def start(self, vm_id: str) -> None:
        """StartContainer."""
        vms.start_vm(self.context, vm_id)

    def stop(self, vm_id: str, grace: float = 0) -> None:
        """StopContainer."""
        vms.stop_vm(self.context, vm_id, grace)

    def remove(self, vm_id: str) -> None:
        """RemoveContainer."""
        vms.remove_vm(self.context, vm_id)

    def stop_pod(self, pod_id: str) -> None:
        """StopPodSandbox."""
        pods.stop_pod(self.context, pod_id)

    def remove_pod(self, pod_id: str) -> None:
        """RemovePodSandbox."""
        pods.remove_pod(self.context, pod_id)

    # What it knows

    def pod(self, pod_id: str) -> PodRecord:
        """The record of a pod."""
        return self.store.pods[pod_id]

    def vm(self, vm_id: str) -> VmRecord:
        """The record of a VM."""
        return self.store.vms[vm_id]
