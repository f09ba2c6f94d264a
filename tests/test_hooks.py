"""Every hook once, through the one facade, answered by a plugin of somebody else's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pluggy
import pytest
from attrs import evolve

from tests.fakes import models
from tests.fakes.hypervisor import FakeHypervisor, Faults
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import Registry
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, Share, Volume
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import ExecSession, GuestCommand, GuestStreams
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
from virtlet.model.option import TEXT, Annotation, Option, Settings
from virtlet.model.pod import DnsConfig, Pod, Profile
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Console, Machine, Mount, Vm, VmConfig, VolumeRequest

COLOUR = Option(
    field="colour",
    flag="--colour",
    env="VIRTLET_COLOUR",
    kind=TEXT,
    default="red",
    help="of the test",
)
SHADE = Annotation(name="VirtletShade", kind=TEXT, default="dark", help="of the test")


class Session(ExecSession):
    """A command that has ended."""

    def run(self, streams: GuestStreams, timeout: float | None) -> int:
        return 7


class Plugin:
    """Answers every hook, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        return [COLOUR]

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        return [SHADE]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        self.heard += [settings[COLOUR], node.state_dir("mine")]

    @hookimpl
    def virtlet_reconcile(self, pods: Sequence[Pod], vms: Sequence[Vm]) -> None:
        self.heard += [[pod.id for pod in pods], [vm.id for vm in vms]]

    @hookimpl
    def virtlet_shutdown(self) -> None:
        self.heard.append("shutdown")

    @hookimpl
    def virtlet_network_status(self) -> Sequence[str]:
        return ["the cable is out"]

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor:
        return FakeHypervisor(Faults())

    @hookimpl
    def virtlet_resolve_image(self, name: str) -> ImageSource | None:
        return ImageSource(name=name, url=f"mine://{name}") if name.startswith("mine/") else None

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        return FetchedImage(size=7, annotations={"from": source.url, "user": credentials.username})

    @hookimpl
    def virtlet_unpack_image(self, name: str, head: bytes) -> Conversion | None:
        return Conversion(format=name, argv=("unpack",)) if head == b"packed" else None

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        return RecognizedImage(format="kernel") if file.read_bytes()[:2] == b"MZ" else None

    @hookimpl
    def virtlet_pod_flavor(self, pod: Pod) -> Mapping[str, Any]:
        return {"size": pod.name}

    @hookimpl
    def virtlet_admit_pod(self, pod: Pod) -> None:
        self.heard.append(pod.name)

    @hookimpl
    def virtlet_admit_vm(self, pod: Pod, config: VmConfig) -> None:
        raise InvalidArgument(f"{pod.name} may not have a VM of {config.image}")

    @hookimpl
    def virtlet_setup_network(self, pod: Pod) -> Network:
        return Network(netns=None, details=pod.id)

    @hookimpl
    def virtlet_adjust_network(self, pod: Pod, network: Network) -> Network | None:
        return evolve(network, dns=DnsConfig(searches=(pod.name,)))

    @hookimpl
    def virtlet_serve_network(self, pod: Pod, network: Network) -> None:
        self.heard += [pod.id, network]

    @hookimpl
    def virtlet_teardown_network(self, pod: Pod, network: Network | None) -> None:
        self.heard += [pod.id, network]

    @hookimpl
    def virtlet_flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor:
        return Flavor(vcpus=3)

    @hookimpl
    def virtlet_adjust_flavor(
        self, pod: Pod, config: VmConfig, image: Image, flavor: Flavor
    ) -> Flavor | None:
        return evolve(flavor, extras={"for": f"{pod.name} {config.image} {image.format}"})

    @hookimpl
    def virtlet_root_disk(self, vm: Vm, flavor: Flavor) -> Disk:
        return Disk(path=vm.directory / "root", format=size_of(flavor))

    @hookimpl
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Volume | None:
        return Share(
            host_path=Path(request.source.host_path),
            guest_path=request.source.guest_path,
            tag=request.role,
        )

    @hookimpl
    def virtlet_cloud_init(
        self, vm: Vm, flavor: Flavor, volumes: Sequence[Volume]
    ) -> CloudInitPart:
        return CloudInitPart(meta_data={"vcpus": flavor.vcpus, "volumes": len(volumes)})

    @hookimpl
    def virtlet_seed(self, vm: Vm, cloud_init: CloudInit) -> Disk:
        return Disk(path=vm.directory / str(cloud_init.meta_data["label"]))

    @hookimpl
    def virtlet_release_root_disk(self, vm: Vm, disk: Disk | None) -> None:
        self.heard += [vm.id, disk]

    @hookimpl
    def virtlet_release_volume(self, vm: Vm, request: VolumeRequest, volume: Volume | None) -> None:
        self.heard += [request, volume]

    @hookimpl
    def virtlet_release_seed(self, vm: Vm, disk: Disk | None) -> None:
        self.heard += [vm.id, disk]

    @hookimpl
    def virtlet_render_domain(self, machine: Machine) -> Element:
        return Element("domain", {"of": machine.vm.id})

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        domain.set("edited", "yes")

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart:
        return LaunchPart(arguments=("-name", machine.vm.id))

    @hookimpl
    def virtlet_guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession:
        self.heard.append(command.argv)
        return Session()

    @hookimpl
    def virtlet_event(self, event: Event) -> None:
        self.heard.append(event)


def size_of(flavor: Flavor) -> str:
    """Something of the flavor, to see that it came through."""
    return f"raw{flavor.vcpus}"


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def hooks(plugin: Plugin) -> Hooks:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, "mine")
    return Hooks(Registry(manager, (), ("mine",), {}))


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return models.vm(tmp_path, plugins=("mine",))


@pytest.fixture
def machine(vm: Vm, tmp_path: Path) -> Machine:
    console = Console(output=tmp_path / "console.out", input=tmp_path / "console.in")
    return Machine(
        vm=vm,
        flavor=Flavor(),
        root=Disk(path=tmp_path),
        volumes=(),
        seed=None,
        console=console,
        accelerator="qemu",
        vmwrapper=tmp_path / "e",
    )


PROFILE = Profile(handler="", plugins=("mine",))


def test_hook_options(hooks: Hooks) -> None:
    assert hooks.options() == [("mine", COLOUR)]


def test_hook_annotations(hooks: Hooks) -> None:
    assert hooks.annotations(PROFILE) == [("mine", SHADE)]


def test_hook_configure(hooks: Hooks, plugin: Plugin, tmp_path: Path) -> None:
    node = Node(
        data_dir=tmp_path,
        run_dir=tmp_path,
        instance="i",
        vmwrapper=tmp_path,
        emulator_uid=0,
        emulator_gid=0,
    )
    hooks.configure(Settings(values={"colour": "blue"}), node)
    assert plugin.heard == ["blue", tmp_path / "plugins" / "mine"]


def test_hook_reconcile(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    hooks.reconcile([vm.pod], [vm])
    assert plugin.heard == [[vm.pod.id], [vm.id]]


def test_hook_shutdown(hooks: Hooks, plugin: Plugin) -> None:
    hooks.shutdown()
    assert plugin.heard == ["shutdown"]


def test_hook_network_status(hooks: Hooks) -> None:
    assert hooks.network_status(PROFILE) == ["the cable is out"]


def test_hook_hypervisor(hooks: Hooks) -> None:
    name, hypervisor = hooks.hypervisor(PROFILE)
    assert (name, hypervisor.info().name) == ("mine", "fake")


def test_hook_resolve_image(hooks: Hooks) -> None:
    assert hooks.resolve_image(PROFILE, parse_reference("mine/x")).url == "mine://mine/x"


def test_hook_fetch_image(hooks: Hooks) -> None:
    source = ImageSource(name="x", url="mine://x")
    staging: Any = None
    fetched = hooks.fetch_image(PROFILE, source, Credentials(username="me"), staging)
    assert fetched == FetchedImage(size=7, annotations={"from": "mine://x", "user": "me"})


def test_hook_unpack_image(hooks: Hooks) -> None:
    assert hooks.unpack_image(PROFILE, "x", b"packed") == Conversion(format="x", argv=("unpack",))
    assert hooks.unpack_image(PROFILE, "x", b"plain") is None


def test_hook_recognize_image(hooks: Hooks, tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_bytes(b"MZ")
    found = hooks.recognize_image(PROFILE, "x", file)
    assert found == ("mine", RecognizedImage(format="kernel", virtual_size=0))
    file.write_bytes(b"ZM")
    with pytest.raises(FailedPrecondition, match="recognises image 'x'.*asked: mine; name one"):
        hooks.recognize_image(PROFILE, "x", file)


def test_hook_admit_pod(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    hooks.admit_pod(vm.pod)
    assert plugin.heard == ["default/web"]


def test_hook_admit_vm(hooks: Hooks, vm: Vm) -> None:
    with pytest.raises(
        InvalidArgument, match=f"default/web may not have a VM of {vm.config.image}"
    ):
        hooks.admit_vm(vm.pod, vm.config)


def test_hook_pod_flavor(hooks: Hooks, vm: Vm) -> None:
    assert hooks.pod_flavor(vm.pod) == {"size": "default/web"}
    others = evolve(vm.pod.profile, plugins=(), flavor={"vcpus": 2})
    assert hooks.pod_flavor(evolve(vm.pod, profile=others)) == {"vcpus": 2}


def test_hook_setup_network(hooks: Hooks, vm: Vm) -> None:
    assert hooks.order("virtlet_setup_network", PROFILE) == ("mine",)
    assert hooks.setup_network("mine", vm.pod) == Network(netns=None, details=vm.pod.id)


def test_hook_adjust_network(hooks: Hooks, vm: Vm) -> None:
    network = Network(netns=None, details=vm.pod.id)
    adjusted = evolve(network, dns=DnsConfig(searches=("default/web",)))
    assert hooks.adjust_network(vm.pod, network) == adjusted


def test_hook_serve_network(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    network = Network(netns=None)
    hooks.serve_network("mine", vm.pod, network)
    assert plugin.heard == [vm.pod.id, network]


def test_hook_teardown_network(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    hooks.teardown_network("mine", vm.pod, None)
    assert plugin.heard == [vm.pod.id, None]


def test_hook_flavor(hooks: Hooks, vm: Vm) -> None:
    assert hooks.flavor(vm.pod, vm.config, vm.image).vcpus == 3


def test_hook_adjust_flavor(hooks: Hooks, vm: Vm) -> None:
    found = hooks.flavor(vm.pod, vm.config, vm.image)
    assert found == Flavor(vcpus=3, extras={"for": "default/web tiny qcow2"})


def test_hook_root_disk(hooks: Hooks, vm: Vm) -> None:
    assert hooks.root_disk("mine", vm, Flavor(vcpus=5)) == Disk(
        path=vm.directory / "root", format="raw5"
    )


def test_hook_volume(hooks: Hooks, vm: Vm) -> None:
    request = VolumeRequest(role="volume-0", source=Mount(guest_path="/data", host_path="/srv"))
    assert hooks.volume("mine", vm, request) == Share(
        host_path=Path("/srv"), guest_path="/data", tag="volume-0"
    )


def test_hook_cloud_init(hooks: Hooks, vm: Vm) -> None:
    part = CloudInitPart(meta_data={"vcpus": 5, "volumes": 0})
    assert hooks.cloud_init(vm, Flavor(vcpus=5), ()) == [("mine", part)]


def test_hook_seed(hooks: Hooks, vm: Vm) -> None:
    disk = hooks.seed("mine", vm, CloudInit(meta_data={"label": "cidata"}))
    assert disk == Disk(path=vm.directory / "cidata")


def test_hook_release_root_disk(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    hooks.release_root_disk("mine", vm, None)
    assert plugin.heard == [vm.id, None]


def test_hook_release_volume(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    request = VolumeRequest(role="volume-0", source=Mount(guest_path="/data", host_path="/srv"))
    hooks.release_volume("mine", vm, request, None)
    assert plugin.heard == [request, None]


def test_hook_release_seed(hooks: Hooks, plugin: Plugin, vm: Vm) -> None:
    hooks.release_seed("mine", vm, None)
    assert plugin.heard == [vm.id, None]


def test_hook_render_domain(hooks: Hooks, machine: Machine) -> None:
    plugin, domain = hooks.render_domain(machine)
    assert (plugin, domain.get("of")) == ("mine", machine.vm.id)


def test_hook_customize_domain(hooks: Hooks, machine: Machine) -> None:
    _, domain = hooks.render_domain(machine)
    hooks.customize_domain("mine", machine, domain)
    assert domain.get("edited") == "yes"


def test_hook_launch(hooks: Hooks, machine: Machine) -> None:
    assert hooks.launch(machine) == [("mine", LaunchPart(arguments=("-name", machine.vm.id)))]


def test_hook_guest_exec(hooks: Hooks, plugin: Plugin, machine: Machine) -> None:
    streams: Any = None
    assert hooks.guest_exec(machine, GuestCommand(argv=("true",))).run(streams, None) == 7
    assert plugin.heard == [("true",)]


def test_hook_event(hooks: Hooks, plugin: Plugin) -> None:
    event = Event(kind=EventKind.VM_STARTED, subject="vm", pod_id="pod", at=5)
    hooks.event(PROFILE, event)
    assert plugin.heard == [event]
