"""Every example of docs/hooks.md, called through the core's facade."""

import bz2
import gzip
import inspect
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve

from tests.docs.page import NAME, PROFILE, ROOT, Example, sections
from tests.fakes import models
from tests.fakes.image_source import FakeImageSource
from tests.fakes.links import names
from tests.images.disks import raw_disk, recognize
from virtlet.core.cloud_init import merge
from virtlet.core.guest_sessions.exec_streams import CollectedStreams
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle.pods import check_annotations
from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import ImageRoute, Images
from virtlet.launch.merge import merge_launch
from virtlet.model.disk import Disk
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.image import ImageSource, RecognizedImage
from virtlet.model.network import Network, Nic
from virtlet.model.pod import Pod, Profile
from virtlet.model.reference import parse_reference
from virtlet.model.vm import Machine, Mount, Vm, VolumeRequest
from virtlet.plugins.libvirt_qemu.domains import flaw, written
from virtlet.testing.namespaces import enter_namespace

STARTED = Event(kind=EventKind.VM_STARTED, subject="b" * 32, pod_id="a" * 32, at=5)
EMPTY_DIR = "/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/scratch"
Load = Callable[[], Example]


@pytest.fixture
def example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Example]:
    """The example of the hook that the test is named after, loaded as an installed plugin is."""
    section = sections()[request.function.__name__.removeprefix("test_example_of_")]
    section.write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Example(section.hook, tmp_path)
    del sys.modules[section.module]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """A pod that the example serves."""
    return models.pod(tmp_path, plugins=(NAME,))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """The machine of that pod's VM, whose directory is there."""
    (tmp_path / "vm").mkdir()
    return models.machine(tmp_path, plugins=(NAME,))


@pytest.fixture
def vm(machine: Machine) -> Vm:
    """The VM alone."""
    return machine.vm


def _with(pod: Pod, **config: object) -> Pod:
    return evolve(pod, config=evolve(pod.config, **config))  # type: ignore[arg-type]


def _user_data(example: Example, vm: Vm, flavor: Flavor | None = None) -> object:
    """What cloud-init is told, merged."""
    return merge(example.hooks.cloud_init(vm, flavor or Flavor(), ())).user_data


def test_example_of_virtlet_options(example: Example) -> None:
    """The setting's value reaches the image's address; other names are not its own."""
    example.configure(mirrorAddress="https://mirror.test")
    source = example.hooks.resolve_image(PROFILE, parse_reference("virtlet.cloud/mirror/debian:12"))
    assert (source.name, source.url) == ("mirror/debian", "https://mirror.test/debian")
    with pytest.raises(FailedPrecondition, match="no plugin"):
        example.hooks.resolve_image(PROFILE, parse_reference("debian"))


def test_example_of_virtlet_annotations(example: Example, vm: Vm) -> None:
    """The pod's wish, or the default."""
    wishing = _with(vm.pod, annotations={"ExampleTimezone": "Europe/Berlin"})
    check_annotations(example.hooks, wishing)
    assert _user_data(example, evolve(vm, pod=wishing)) == {"timezone": "Europe/Berlin"}
    assert _user_data(example, vm) == {"timezone": "Etc/UTC"}


def test_example_of_virtlet_configure(example: Example, vm: Vm) -> None:
    """The key is made once, and stays over a restart."""
    example.configure()
    told = _user_data(example, vm)
    example.configure()
    public = (example.node.state_dir("node_key") / "id_ed25519.pub").read_text().strip()
    assert _user_data(example, vm) == told == {"ssh_authorized_keys": [public]}


def test_example_of_virtlet_reconcile(example: Example, machine: Machine) -> None:
    """Files of VMs that the database has stay, and no others."""
    example.configure()
    directory = example.node.state_dir("started")
    (directory / "gone").touch()
    assert example.hooks.launch(machine) == []
    example.hooks.reconcile([machine.vm.pod], [machine.vm])
    assert [file.name for file in directory.iterdir()] == [machine.vm.id]
    removed = evolve(STARTED, kind=EventKind.VM_REMOVED, subject=machine.vm.id)
    example.hooks.event(PROFILE, removed)
    assert list(directory.iterdir()) == []


def test_example_of_virtlet_shutdown(example: Example) -> None:
    """What was heard is in the file, and nobody holds it."""
    example.configure()
    example.hooks.event(PROFILE, STARTED)
    example.hooks.shutdown()
    database = sqlite3.connect(example.node.state_dir("history") / "history.db")
    assert database.execute("SELECT * FROM history").fetchall() == [(5, "vm-started", "b" * 32, "")]
    database.close()


def test_example_of_virtlet_network_status(example: Example, tmp_path: Path) -> None:
    """An interface that is up is no problem, one that is not there is."""
    example.configure(uplink="lo")
    assert example.hooks.network_status(PROFILE) == []
    example.configure(uplink="nosuch0")
    assert example.hooks.network_status(PROFILE) == ["the uplink nosuch0 has no carrier"]


def test_example_of_virtlet_hypervisor(example: Example, machine: Machine) -> None:
    """A VM's whole life, told to the core."""
    plugin, hypervisor = example.hooks.hypervisor(PROFILE)
    seen: list[Observation] = []
    hypervisor.subscribe(seen.append)
    hypervisor.open()
    hypervisor.define(machine, None)
    hypervisor.start(machine.vm.id)
    assert hypervisor.list()[machine.vm.id].state is DomainState.RUNNING
    hypervisor.shutdown(machine.vm.id)
    states = [DomainState.DEFINED, DomainState.RUNNING, DomainState.STOPPED]
    assert [observation.state for observation in seen] == states
    for _ in range(2):
        hypervisor.stop(machine.vm.id)
        hypervisor.remove(machine.vm.id)
    assert (plugin, hypervisor.list()) == (NAME, {})


def test_example_of_virtlet_resolve_image(example: Example) -> None:
    """A release by its name; an unknown one is refused by name."""
    source = example.hooks.resolve_image(
        PROFILE, parse_reference("virtlet.cloud/debian/trixie:latest")
    )
    assert source.url.endswith("/trixie/latest/debian-13-genericcloud-amd64.qcow2")
    with pytest.raises(NotFound, match="potato: the known releases are bookworm, trixie"):
        example.hooks.resolve_image(PROFILE, parse_reference("debian/potato"))


def test_example_of_virtlet_fetch_image(example: Example, tmp_path: Path) -> None:
    """The store has the content unpacked; damage and absence are said."""
    packed, disk = tmp_path / "a.img.gz", raw_disk("packed")
    packed.write_bytes(gzip.compress(disk))

    def fetch(path: Path) -> Path:
        source = ImageSource(name="a", url=f"gzip+file://{path}")
        layout = Layout(tmp_path / "images", os.getgid())
        store = ImageStore(layout, in_use=set, recognize=recognize)
        ways = ImageRoute(
            "",
            lambda name: source,
            lambda *a, **k: example.hooks.fetch_image(PROFILE, *a, **k),
            recognize,
        )
        return Images(store).pull(parse_reference("a"), ways).path

    assert fetch(packed).read_bytes() == disk
    packed.write_bytes(gzip.compress(disk)[:-9])
    with pytest.raises(FailedPrecondition, match="is damaged"):
        fetch(packed)
    with pytest.raises(NotFound, match="there is no"):
        fetch(tmp_path / "b.img.gz")


def test_example_of_virtlet_unpack_image(example: Example, tmp_path: Path) -> None:
    """What bzip2 has packed is unpacked on its way into the store."""
    disk = raw_disk("packed")
    server = FakeImageSource()
    server.contents["a"] = bz2.compress(disk)
    route = evolve(server.route(), unpack=partial(example.hooks.unpack_image, PROFILE))
    store = ImageStore(Layout(tmp_path / "images", os.getgid()), in_use=set, recognize=recognize)
    image = Images(store).pull(parse_reference("a"), route)
    assert (image.path.read_bytes(), image.source_format) == (disk, "bzip2")
    assert example.hooks.unpack_image(PROFILE, "a", disk[:512]) is None


def test_example_of_virtlet_recognize_image(example: Example, tmp_path: Path) -> None:
    """A kernel is one by its header; an old one is refused, and a disk is not the plugin's."""
    file, kernel = tmp_path / "part", bytearray(raw_disk())
    kernel[0x202:0x208] = b"HdrS\x0c\x02"
    file.write_bytes(kernel)
    found = RecognizedImage(format="kernel")
    assert example.hooks.recognize_image(PROFILE, "a", file) == (NAME, found)
    kernel[0x206] = 0x0B
    file.write_bytes(kernel)
    with pytest.raises(InvalidArgument, match=r"older than Linux 3\.8"):
        example.hooks.recognize_image(PROFILE, "a", file)
    file.write_bytes(raw_disk())
    with pytest.raises(FailedPrecondition, match="recognises image 'a'.*asked: example"):
        example.hooks.recognize_image(PROFILE, "a", file)


def test_example_of_virtlet_admit_pod(example: Example, pod: Pod) -> None:
    """The label decides."""
    example.hooks.admit_pod(_with(pod, labels={"owner": "shop"}))
    with pytest.raises(InvalidArgument, match="default/web has no owner"):
        example.hooks.admit_pod(pod)


def test_example_of_virtlet_pod_flavor(example: Example, pod: Pod) -> None:
    """What the handler says, and more vCPUs, in one namespace."""
    pod = evolve(pod, profile=evolve(pod.profile, flavor={"vcpus": 2, "memory": "1Gi"}))
    assert example.hooks.pod_flavor(pod) == pod.profile.flavor
    inside = _with(pod, metadata=evolve(pod.config.metadata, namespace="night"))
    assert example.hooks.pod_flavor(inside) == {"vcpus": 8, "memory": "1Gi"}


def test_example_of_virtlet_admit_vm(example: Example, vm: Vm) -> None:
    """The name that the user wrote decides, whatever the kubelet made of it."""
    pinned = evolve(vm.config, image="sha256:" + "0" * 64, user_image="tiny@sha256:" + "0" * 64)
    example.hooks.admit_vm(vm.pod, pinned)
    with pytest.raises(InvalidArgument, match="by digest"):
        example.hooks.admit_vm(vm.pod, vm.config)


def test_example_of_virtlet_setup_network(example: Example, pod: Pod, tmp_path: Path) -> None:
    """A tap on the bridge, and no trace of it afterwards, with the record or without."""
    node = tmp_path / "netns"
    netns.create(node)
    wishing = _with(pod, annotations={"LabAddress": "192.0.2.7/24"})
    try:
        with enter_namespace(node):
            with Links() as net:
                net.add_bridge("lab0")
                net.set("lab0", up=True)
            assert example.hooks.setup_network(NAME, pod) is None
            network = example.hooks.setup_network(NAME, wishing)
            assert network is not None
            assert network.ips == ("192.0.2.7",)
            assert network.nics[0].device in names()
            for record in (network, None):
                example.hooks.teardown_network(NAME, wishing, record)
            assert names() == ["lo", "lab0"]
    finally:
        netns.delete(node)


def test_example_of_virtlet_adjust_network(example: Example, pod: Pod) -> None:
    """Smaller packets in that namespace, and nothing else."""
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, device="tap0")
    network = Network(netns=None, nics=(nic,))
    assert example.hooks.adjust_network(pod, network) is network
    inside = _with(pod, metadata=evolve(pod.config.metadata, namespace="vpn"))
    (adjusted,) = example.hooks.adjust_network(inside, network).nics
    assert adjusted == evolve(nic, mtu=1380)


def test_example_of_virtlet_serve_network(example: Example, pod: Pod, tmp_path: Path) -> None:
    """The server's file has the adjusted address, and goes with the network."""
    example.configure()
    hosts, node = example.node.state_dir("lab_hosts"), tmp_path / "netns"
    netns.create(node)
    wishing = _with(pod, annotations={"LabAddress": "192.0.2.7/24"})
    try:
        with enter_namespace(node):
            with Links() as net:
                net.add_bridge("lab0")
                net.set("lab0", up=True)
            network = example.hooks.setup_network(NAME, wishing)
            assert network is not None
            (nic,) = network.nics
            adjusted = evolve(network, nics=(evolve(nic, mac="02:76:00:00:00:07"),))
            example.hooks.serve_network(NAME, wishing, adjusted)
            (file,) = hosts.iterdir()
            assert file.read_text() == "02:76:00:00:00:07,192.0.2.7,infinite\n"
            for record in (network, None):
                example.hooks.teardown_network(NAME, wishing, record)
            assert names() == ["lo", "lab0"]
            assert list(hosts.iterdir()) == []
    finally:
        netns.delete(node)


def test_example_of_virtlet_flavor(example: Example, vm: Vm) -> None:
    """Images of that name, and no others."""
    windows = evolve(vm.image, names=("virtlet.cloud/windows:11",))
    assert example.hooks.flavor(vm.pod, vm.config, windows).firmware == "uefi"
    with pytest.raises(FailedPrecondition, match="no plugin"):
        example.hooks.flavor(vm.pod, vm.config, vm.image)


def test_example_of_virtlet_adjust_flavor(example: Example, vm: Vm) -> None:
    """What another plugin chose is bounded in that namespace alone."""
    large = EntryPoint("large", "tests.fakes.plugins:LargeFlavor", "virtlet")
    hooks = Hooks(discover([large, example.entry]))
    both = evolve(vm.pod, profile=Profile(handler="", plugins=("large", NAME)))
    assert hooks.flavor(both, vm.config, vm.image).vcpus == 8
    inside = _with(both, metadata=evolve(both.config.metadata, namespace="ci"))
    assert hooks.flavor(inside, vm.config, vm.image).vcpus == 2


def test_example_of_virtlet_volume(example: Example, vm: Vm) -> None:
    """The disk has a file system that the guest mounts; other mounts are left to others."""
    example.configure()
    scratch = Mount(host_path=EMPTY_DIR, guest_path="/scratch")
    request = VolumeRequest(role="volume-0", source=scratch)
    disk = example.hooks.volume(NAME, vm, request)
    assert isinstance(disk, Disk)
    assert (disk.guest_path, disk.filesystem, disk.block) == ("/scratch", True, False)
    subprocess.run(["e2fsck", "-fn", disk.path], check=True, capture_output=True)
    other = VolumeRequest(role="volume-1", source=evolve(scratch, host_path="/srv"))
    assert example.hooks.volume(NAME, vm, other) is None
    for record in (disk, None):
        example.hooks.release_volume(NAME, vm, request, record)
    assert list(vm.directory.iterdir()) == []


def test_example_of_virtlet_root_disk(example: Example, vm: Vm) -> None:
    """A copy of a raw image; others are left to the overlays."""
    example.configure()
    vm.image.path.write_bytes(raw_disk("root"))
    raw = evolve(vm, image=evolve(vm.image, format="raw"))
    disk = example.hooks.root_disk(NAME, raw, Flavor())
    assert disk is not None
    assert disk.path.read_bytes() == raw_disk("root")
    assert example.hooks.root_disk(NAME, vm, Flavor()) is None
    for record in (disk, None):
        example.hooks.release_root_disk(NAME, raw, record)
    assert list(vm.directory.iterdir()) == []


def test_example_of_virtlet_cloud_init(example: Example, vm: Vm) -> None:
    """By the flavor that was chosen."""
    swap = {"filename": "/swapfile", "size": 1 << 30}
    assert _user_data(example, vm, Flavor(memory=2 << 30)) == {"swap": swap}


def test_example_of_virtlet_seed(example: Example, vm: Vm) -> None:
    """A FAT disk by the label that cloud-init looks for, with the documents in it."""
    example.configure()
    documents = merge([])
    disk = example.hooks.seed(NAME, vm, evolve(documents, meta_data={"instance-id": "i"}))
    assert disk is not None

    def seen(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "CIDATA" in seen("mlabel", "-s", "-i", str(disk.path), "::")
    assert seen("mtype", "-i", str(disk.path), "::user-data") == "#cloud-config\n{}"
    assert seen("mtype", "-i", str(disk.path), "::meta-data") == '{"instance-id": "i"}'
    for record in (disk, None):
        example.hooks.release_seed(NAME, vm, record)
    assert list(vm.directory.iterdir()) == []


def test_example_of_virtlet_render_domain(
    example: Example, machine: Machine, tmp_path: Path
) -> None:
    """A document that libvirt's schema takes, and the hypervisor as the machine's."""
    made = evolve(machine, environment={"VIRTLET_LAUNCH_VM": machine.vm.id})
    document = tmp_path / "domain.xml"
    _, domain = example.hooks.render_domain(made)
    assert not flaw(made, domain)
    document.write_text(written(domain))
    subprocess.run(["virt-xml-validate", document, "domain"], check=True, capture_output=True)


def test_example_of_virtlet_customize_domain(example: Example, machine: Machine) -> None:
    """Beside what is there already, where the pod's label asks for it."""
    domain = ElementTree.fromstring("<domain><memoryBacking><source/></memoryBacking></domain>")
    example.hooks.customize_domain(NAME, machine, domain)
    assert domain.find("memoryBacking/hugepages") is None
    labelled = _with(machine.vm.pod, labels={"hugepages": ""})
    wishing = evolve(machine, vm=evolve(machine.vm, pod=labelled))
    example.hooks.customize_domain(NAME, wishing, domain)
    assert [child.tag for child in domain[0]] == ["source", "hugepages"]


def test_example_of_virtlet_launch(example: Example, machine: Machine) -> None:
    """Two words of the command line."""
    launch = merge_launch(example.hooks.launch(machine))
    node = os.uname().nodename
    assert launch.arguments == ("-fw_cfg", f"name=opt/org.example/node,string={node}")


def test_example_of_virtlet_guest_exec(
    example: Example, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ssh prints and returns; a guest that does not answer is UNAVAILABLE."""
    ssh, status = tmp_path / "bin" / "ssh", tmp_path / "status"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nshift 4\necho "$@"\necho no >&2\nexit $(cat {status})\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("192.0.2.7/24",))
    there = evolve(machine, vm=evolve(machine.vm, network=Network(netns=None, nics=(nic,))))
    command = GuestCommand(argv=("echo", "a b"), captured=True)
    status.write_text("3")
    streams = CollectedStreams(1000, lambda: False)
    assert example.hooks.guest_exec(there, command).run(streams, 10.0) == 3
    assert bytes(streams.output) == b"root@192.0.2.7 echo 'a b'\n"
    assert bytes(streams.errors) == b"no\n"
    status.write_text("255")
    with pytest.raises(Unavailable, match="does not answer by ssh"):
        example.hooks.guest_exec(there, command).run(streams, 10.0)
    with pytest.raises(FailedPrecondition, match="no plugin"):
        example.hooks.guest_exec(machine, command)


def test_example_of_virtlet_event(example: Example) -> None:
    """A line for each kind."""
    example.configure()
    for _ in range(2):
        example.hooks.event(PROFILE, STARTED)
    file = example.node.state_dir("count_events") / "virtlet.prom"
    assert file.read_text() == 'virtlet_events{kind="vm-started"} 2\n'


def test_every_example_is_called() -> None:
    """None is only shown."""
    here = dict(inspect.getmembers(sys.modules[__name__], inspect.isfunction))
    shown = {hook for hook, section in sections().items() if section.example}
    assert {f"test_example_of_{hook}" for hook in shown} <= set(here)


def test_the_examples_are_typed_strictly(tmp_path: Path) -> None:
    """By a type checker that is told nothing else, as an author's is."""
    for section in sections().values():
        if section.example:
            section.write(tmp_path)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.mypy_cache"]
    done = subprocess.run([*mypy, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
