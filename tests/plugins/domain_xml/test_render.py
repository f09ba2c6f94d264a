"""Documents of machines, compared with golden ones and put before libvirt's own schema."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from attrs import evolve

from tests.fakes.model import make_config, make_image, make_node, make_pod, make_vm, make_vm_config
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.disk import Disk, GuestFiles, HostDevice, HostDevices, Share, Unneeded
from virtlet.model.flavor import Flavor
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM
from virtlet.model.resources import Resources
from virtlet.model.vm import Console, Machine
from virtlet.plugins.domain_xml.placement import Cell, Placement, placement_of
from virtlet.plugins.domain_xml.plugin import OPTIONS, Plugin
from virtlet.plugins.domain_xml.render import EXTRA, Firmware, Renderer, domain_name, find_uefi
from virtlet.plugins.libvirt_qemu.domains import written

DATA = Path("/var/lib/virtlet")
VOLUMES = DATA / "volumes" / ("b" * 32)
RUN = DATA / "run/vm/bbbbbbbbbbbb"
FIRMWARE = Firmware(Path("/usr/share/OVMF/CODE.fd"), Path("/usr/share/OVMF/VARS.fd"))
SECURE = Firmware(
    Path("/usr/share/OVMF/CODE.ms.fd"), Path("/usr/share/OVMF/VARS.ms.fd"), secure=True
)
_PINNED = Resources(cpuset_cpus="0")
_OWN = Resources(cpuset_cpus="0-1", cpu_shares=2048)


def plain() -> Machine:
    """What a pod without wishes gets."""
    return Machine(
        vm=make_vm(VOLUMES, make_pod(), image=make_image(DATA / "images/data/0")),
        flavor=Flavor(),
        root=Disk(path=VOLUMES / "root.qcow2", backing=DATA / "images/data/0", serial="root"),
        volumes=(),
        seed=Disk(path=VOLUMES / "seed.iso", format="raw", readonly=True, kind="cdrom"),
        console=Console(output=RUN / "console.out", input=RUN / "console.in"),
        accelerator="qemu",
        vmwrapper=DATA / "bin/vmwrapper",
        environment={
            ENV_SOCKET: str(DATA / "tapfdserver.sock"),
            ENV_VM: "b" * 32,
            ENV_TOKEN: "one-time",
        },
        agent_socket=RUN / "agent.sock",
    )


def _volumes() -> Machine:
    return evolve(
        plain(),
        volumes=(
            Disk(path=Path("/dev/loop7"), format="raw", block=True, serial="volume-0"),
            GuestFiles(host_path=Path("/etc/hosts"), guest_path="/etc/hosts"),
            Share(
                host_path=Path('/srv/<a> & "b"'),
                guest_path="/mnt/nine",
                tag="volume-2",
                readonly=True,
            ),
            Share(
                host_path=Path("/srv/fs"), guest_path="/mnt/fs", tag="volume-3", driver="virtiofs"
            ),
            Disk(path=VOLUMES / "volume-4.raw", format="raw", readonly=True, serial="volume-4"),
            Disk(path=VOLUMES / "tools.iso", format="raw", readonly=True, kind="cdrom"),
        ),
    )


_GPU = HostDevice(kind="pci", address="0000:65:00.0", numa_node=0, bars=(64 << 30) + (48 << 20))
_SOUND = HostDevice(kind="pci", address="0000:65:00.1", numa_node=0, bars=16 << 10)
_VGPU = HostDevice(kind="mdev", address="c60cc781-64a8-491e-b7a2-6a9b3c3a5d1a", numa_node=1)


def _group(number: int, *devices: HostDevice) -> Unneeded:
    """A VFIO group, as a device plugin brings it."""
    path = Path(f"/dev/vfio/{number}")
    group = HostDevices(group=path, node=VOLUMES / f"volume-{number}", devices=devices)
    return Unneeded(guest_path=str(path), reason="its devices are the machine's", devices=group)


def all_machines() -> Mapping[str, Machine]:
    """Golden file's name to the machine."""
    machine = plain()
    flavor = machine.flavor
    topology = "<cpu><topology sockets='1' cores='2' threads='2'/></cpu>"
    return {
        "plain": machine,
        "bare": evolve(
            machine,
            seed=None,
            agent_socket=None,
            environment={},
            flavor=evolve(flavor, guest_agent=False),
        ),
        "kvm": evolve(machine, accelerator="kvm"),
        "pc-virtio": evolve(
            machine, flavor=evolve(flavor, machine="pc", disk_bus="virtio", memory=512 << 20)
        ),
        "growing": evolve(
            machine,
            vm=evolve(machine.vm, config=evolve(make_vm_config(), resources=_PINNED)),
            flavor=evolve(flavor, memory=256 << 20, max_vcpus=3, max_memory=500 << 20),
        ),
        "volumes": _volumes(),
        "served": evolve(
            machine,
            volumes=(
                GuestFiles(host_path=Path("/etc/hosts"), guest_path="/etc/hosts"),
                Disk(path=VOLUMES / "1.rbd", format="raw", serial="volume-1", served=True),
                Disk(
                    path=VOLUMES / "2.rbd",
                    format="raw",
                    serial="volume-2",
                    served=True,
                    readonly=True,
                ),
            ),
            flavor=evolve(flavor, disk_cache="none", disk_io="native"),
        ),
        "tuned": evolve(
            _volumes(),
            flavor=evolve(
                flavor,
                disk_cache="none",
                disk_io="native",
                disk_iothreads=2,
                disk_iops=500,
                disk_iops_burst=2000,
                disk_bandwidth=50 << 20,
                disk_burst_seconds=10,
            ),
        ),
        "threaded": evolve(
            _volumes(),
            flavor=evolve(
                flavor,
                disk_bus="virtio",
                disk_io="io_uring",
                disk_iothreads=2,
                disk_bandwidth=50 << 20,
                disk_bandwidth_burst=200 << 20,
            ),
        ),
        "nvme": evolve(_volumes(), flavor=evolve(flavor, disk_bus="nvme", disk_iothreads=2)),
        "persistent": evolve(
            machine,
            root=Disk(
                path=VOLUMES / "persistent-root",
                format="raw",
                block=True,
                serial="root",
                offset=512,
                size=(10 << 30) - 512,
            ),
        ),
        "uefi": evolve(
            machine,
            flavor=evolve(
                flavor,
                firmware="uefi",
                vcpus=4,
                extras={EXTRA: topology},
                system_uuid="4c4c4544-0042-3010-8031-c4c04f503432",
            ),
        ),
        **{
            f"windows-{accelerator}": evolve(
                machine,
                accelerator=accelerator,
                flavor=evolve(
                    flavor,
                    firmware="uefi-secure",
                    guest_os="windows",
                    disk_bus="nvme",
                    video="virtio",
                    watchdog=True,
                    tpm=True,
                ),
            )
            for accelerator in ("kvm", "qemu")
        },
        "placed": evolve(
            _volumes(),
            vm=evolve(machine.vm, config=evolve(make_vm_config(), resources=_OWN)),
            flavor=evolve(
                flavor,
                dedicated_cpus=True,
                numa=True,
                page_size=2 << 20,
                disk_bus="virtio",
                disk_iothreads=1,
            ),
        ),
        "shaped": evolve(
            _volumes(),
            flavor=evolve(
                flavor,
                cpu_model="Nehalem",
                cpu_features={"pcid": "disable", "aes": "require"},
                sound="ich9",
                rng=False,
                boot=("cdroms", "root", "disks"),
                on_reboot="end",
                on_panic="keep",
            ),
        ),
        "direct": evolve(
            machine,
            flavor=evolve(
                flavor,
                kernel="/boot/vmlinuz",
                initrd="/boot/initrd.img",
                kernel_args='console=ttyS0 quiet="<&>"',
            ),
        ),
        "direct-image": evolve(
            machine,
            flavor=evolve(
                flavor,
                kernel="image:/kernel/boot/vmlinuz",
                initrd="image:/kernel/boot/initrd.img",
                kernel_args="console=ttyS0",
            ),
            volumes=(
                Disk(
                    path=Path("/var/lib/virtlet/images/data/1"),
                    format="raw",
                    readonly=True,
                    serial="volume-0",
                    guest_path="/kernel",
                    filesystem=True,
                    filesystem_type="squashfs",
                    kernel=machine.vm.directory / "volume-0.kernel",
                    initrd=machine.vm.directory / "volume-0.initrd",
                ),
            ),
        ),
        **{
            f"devices-{name}": evolve(
                machine,
                accelerator="kvm",
                volumes=(_group(7, _GPU, _SOUND), _group(12, _VGPU)),
                vm=evolve(machine.vm, config=evolve(make_vm_config(), resources=_OWN)),
                flavor=evolve(
                    flavor,
                    firmware="uefi",
                    dedicated_cpus=placed,
                    numa=placed,
                    device_rom=not placed,
                ),
            )
            for name, placed in (("plain", False), ("placed", True))
        },
        "tpm": evolve(machine, flavor=evolve(flavor, tpm=True)),
        "usb": evolve(machine, flavor=evolve(flavor, usb=True, video="vga")),
        "vsock": evolve(machine, flavor=evolve(flavor, vsock=True)),
        "locked": evolve(machine, flavor=evolve(flavor, lock_memory=True)),
        "uefi-secure": evolve(machine, flavor=evolve(flavor, firmware="uefi-secure")),
    }


def _firmware(*, secure: bool = False) -> Firmware:
    return SECURE if secure else FIRMWARE


GOLDEN = Path(__file__).parents[2] / "golden"


def render(machine: Machine, cpu_model: str = "") -> Element:
    renderer = Renderer(64055, 106, cpu_model, uefi=_firmware)
    return renderer.render(machine)


@pytest.mark.parametrize("name", all_machines())
def test_documents_are_as_agreed(name: str, refresh_golden: bool) -> None:
    """Any change to a document shows in the diff of its golden file."""
    text = written(render(all_machines()[name])) + "\n"
    golden = GOLDEN / f"domain-{name}.xml"
    if refresh_golden:
        golden.write_text(text)
    assert text == golden.read_text(), "if this is meant: pytest --refresh-golden"


@pytest.mark.parametrize("name", all_machines())
def test_documents_fit_libvirts_schema(name: str) -> None:
    """Those for KVM too, which cannot be started everywhere."""
    golden = GOLDEN / f"domain-{name}.xml"
    done = subprocess.run(
        ["virt-xml-validate", str(golden), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_text_from_outside_never_becomes_markup() -> None:
    """Names, paths and variables are data."""
    evil = '"><emulator>/bin/sh</emulator>&'
    machine = plain()
    machine = evolve(
        machine,
        root=Disk(path=Path(f"/{evil}")),
        environment={"A": evil},
        vm=evolve(machine.vm, pod=make_pod(name=evil)),
    )
    document = render(machine)
    assert [e.text for e in document.iter("emulator")] == [str(machine.vmwrapper)]
    source = document.find("devices/disk/source")
    assert source is not None
    assert source.get("file") == f"/{evil}"


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_the_format_of_an_image_is_told_to_the_emulator(format: str) -> None:
    """Else it would read a raw image as what the guest wrote into it, or not at all."""
    machine = plain()
    machine = evolve(machine, root=evolve(machine.root, backing_format=format))
    backing = render(machine).find("devices/disk/backingStore/format")
    assert backing is not None
    assert backing.get("type") == format


@pytest.mark.parametrize(
    ("pod", "name"),
    [
        ("web-1", "virtlet-bbbbbbbbbbbb-web-1"),
        ("a.b_c/d e", "virtlet-bbbbbbbbbbbb-a-b-c-d-e"),
        ("ü", "virtlet-bbbbbbbbbbbb"),
        ("x" * 300, "virtlet-bbbbbbbbbbbb-" + "x" * 40),
    ],
)
def test_names_are_fit_for_file_names(pod: str, name: str) -> None:
    """And short: the driver makes paths of them."""
    machine = plain()
    machine = evolve(machine, vm=evolve(machine.vm, pod=make_pod(name=pod)))
    assert domain_name(machine) == name
    assert render(machine).findtext("name") == name


@pytest.mark.parametrize(
    ("accelerator", "flavor", "node", "mode", "model"),
    [
        ("kvm", "", "", "host-model", None),
        ("qemu", "", "", None, None),
        ("kvm", "host-passthrough", "", "host-passthrough", None),
        ("qemu", "host-model", "", "maximum", None),
        ("qemu", "", "Nehalem", "custom", "Nehalem"),
        ("kvm", "Westmere", "Nehalem", "custom", "Westmere"),
    ],
)
def test_the_cpu_is_the_flavors_then_the_nodes_then_what_fits(
    accelerator: str, flavor: str, node: str, mode: str | None, model: str | None
) -> None:
    """Emulation has no host CPU to pass on, and gets its own best one instead."""
    machine = plain()
    machine = evolve(
        machine, accelerator=accelerator, flavor=evolve(machine.flavor, cpu_model=flavor)
    )
    cpu = render(machine, node).find("cpu")
    assert (cpu.get("mode") if cpu is not None else None) == mode
    assert (cpu.findtext("model") if cpu is not None else None) == model


@pytest.mark.parametrize(
    ("accelerator", "sizes", "sockets"),
    [
        ("qemu", {"cores": 2}, {"sockets": "2", "cores": "2", "threads": "1"}),
        ("kvm", {"cores": 2, "threads": 2}, {"sockets": "1", "cores": "2", "threads": "2"}),
        ("kvm", {"threads": 2}, {"sockets": "2", "cores": "1", "threads": "2"}),
    ],
)
def test_a_topology_has_as_many_sockets_as_the_vcpus_fill(
    accelerator: str, sizes: dict[str, Any], sockets: dict[str, str]
) -> None:
    """Those that it can have; the model stays what it is."""
    machine = plain()
    flavor = evolve(machine.flavor, vcpus=2, max_vcpus=4, **sizes)
    machine = evolve(machine, accelerator=accelerator, flavor=flavor)
    cpu = render(machine).find("cpu")
    assert cpu is not None
    (found,) = cpu.iter("topology")
    assert found.attrib == sockets
    assert cpu.get("mode") == ("host-model" if accelerator == "kvm" else None)
    own = {"domain_cpu": "<cpu><topology sockets='4' cores='1' threads='1'/></cpu>"}
    (topology,) = render(evolve(machine, flavor=evolve(flavor, extras=own))).iter("topology")
    assert topology.get("sockets") == "4"
    odd = evolve(machine, flavor=evolve(flavor, max_vcpus=3, vcpus=1, cores=2))
    with pytest.raises(InvalidArgument, match="can have 3 vCPUs, which fill no whole sockets of"):
        render(odd)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    ("accelerator", "model", "extra"),
    [
        ("kvm", "", ""),
        ("kvm", "host-passthrough", ""),
        ("kvm", "EPYC", ""),
        ("qemu", "host-model", ""),
        ("kvm", "", "<cpu mode='host-model'/>"),
        ("kvm", "", "<cpu><model>EPYC</model><topology cores='1'/></cpu>"),
        ("kvm", "", "<cpu mode='host-model'><feature name='avx' policy='disable'/></cpu>"),
    ],
)
def test_nested_virtualisation_is_off_unless_the_flavor_asks_for_it(
    accelerator: str, model: str, extra: str, nested: bool
) -> None:
    machine = plain()
    extras = {EXTRA: extra} if extra else {}
    flavor = evolve(machine.flavor, cpu_model=model, extras=extras, nested=nested)
    cpu = render(evolve(machine, accelerator=accelerator, flavor=flavor)).find("cpu")
    assert cpu is not None
    off = {f.get("name") for f in cpu.iterfind("feature") if f.get("policy") == "disable"}
    assert off - {"avx"} == (set() if nested else {"vmx", "svm"})


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("<cell memory='1073741825' unit='b'/>", "1073741825 bytes together"),
        ("<cell memory='1' unit='GiB'/><cell memory='1'/>", "1073742848 bytes together"),
        ("<cell memory='2' unit='parsec'/>", "a unit such as MiB"),
        ("<cell memory='-2'/>", "a unit such as MiB"),
    ],
)
def test_numa_cells_have_no_more_memory_than_the_machine(cells: str, problem: str) -> None:
    """libvirt would make the machine as large as the cells together."""
    machine = plain()
    extras = {EXTRA: f"<cpu><numa>{cells}</numa></cpu>"}
    with pytest.raises(InvalidArgument, match=problem):
        render(evolve(machine, flavor=evolve(machine.flavor, extras=extras)))


@pytest.mark.parametrize(("accelerator", "mode"), [("kvm", "host-model"), ("qemu", "maximum")])
def test_features_are_those_of_a_model_or_the_largest_cpu(accelerator: str, mode: str) -> None:
    flavor = Flavor(cpu_features={"pcid": "disable"})
    cpu = render(evolve(plain(), accelerator=accelerator, flavor=flavor)).find("cpu")
    assert cpu is not None
    assert cpu.get("mode") == mode
    policies = {feature.get("name"): feature.get("policy") for feature in cpu.iterfind("feature")}
    assert policies == {"pcid": "disable", "vmx": "disable", "svm": "disable"}


def test_a_machine_boots_from_disks_in_the_flavors_order() -> None:
    """The seed is none of them."""
    machine = _volumes()
    flavor = evolve(machine.flavor, boot=("cdroms", "root", "disks"))
    turns = {}
    for disk in render(evolve(machine, flavor=flavor)).iterfind("devices/disk"):
        source, boot = disk.find("source"), disk.find("boot")
        assert source is not None
        path = source.get("file") or source.get("dev") or ""
        turns[Path(path).name] = None if boot is None else boot.get("order")
    assert turns == {
        "tools.iso": "1",
        "root.qcow2": "2",
        "loop7": "3",
        "volume-4.raw": "4",
        "seed.iso": None,
    }


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """The memory nodes of a machine whose CPU 0 is on node 1, and the other one on node 0."""
    for node, cpu in ((0, 1), (1, 0)):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(f"{cpu}\n")
    return tmp_path


def _own(vcpus: int, memory: int = 1 << 30, **more: Any) -> Machine:
    machine = plain()
    vm = evolve(machine.vm, config=evolve(make_vm_config(), resources=_OWN))
    flavor = evolve(machine.flavor, vcpus=vcpus, memory=memory, dedicated_cpus=True, **more)
    return evolve(machine, vm=vm, flavor=flavor)


def test_cpus_beyond_the_vcpus_are_the_emulators(two_nodes: Path) -> None:
    """Those of one memory node come one after the other."""
    assert placement_of(_own(1), two_nodes) == Placement(pins=(1,), emulator="0")
    assert placement_of(_own(2), two_nodes) == Placement(pins=(1, 0), emulator="0,1")
    assert placement_of(plain(), two_nodes) == Placement()
    with pytest.raises(InvalidArgument, match="has 2 CPUs of its own for 3 vCPUs"):
        placement_of(_own(3), two_nodes)


def test_a_guest_has_a_memory_node_for_each_that_its_cpus_are_on(two_nodes: Path) -> None:
    """And as much memory of each as pages allow; none of a node where the emulator alone is."""
    machine = _own(2, 1025 << 20, numa=True)
    assert placement_of(machine, two_nodes).cells == (
        Cell(node=0, vcpus=(0,), memory=513 << 20),
        Cell(node=1, vcpus=(1,), memory=512 << 20),
    )
    paged = placement_of(_own(2, 1026 << 20, numa=True, page_size=2 << 20), two_nodes)
    assert [cell.memory >> 20 for cell in paged.cells] == [514, 512]
    assert placement_of(_own(1, numa=True), two_nodes).nodes == "0"


@pytest.mark.parametrize("text", ["<cpu", "<memory/>", "<cpu/><cpu/>"])
def test_a_cpu_setting_that_is_none_is_refused(text: str) -> None:
    """It could otherwise smuggle in other elements."""
    machine = plain()
    machine = evolve(machine, flavor=evolve(machine.flavor, extras={EXTRA: text}))
    with pytest.raises(InvalidArgument, match="CPU setting"):
        render(machine)


@pytest.mark.parametrize(("bus", "most"), [("virtio", 20), ("nvme", 20), ("scsi", 26)])
def test_each_bus_takes_so_many_disks(bus: str, most: int) -> None:
    """Names and places on the bus are all different, and the one too many is refused."""

    def machine(disks: int) -> Machine:
        volumes = tuple(Disk(path=Path(f"/v{i}"), format="raw") for i in range(disks - 1))
        base = plain()
        return evolve(base, volumes=volumes, flavor=evolve(base.flavor, disk_bus=bus))

    document = render(machine(most))
    disks = document.findall("devices/disk")
    assert len({t.get("dev") for d in disks for t in d.iter("target")}) == most + 1
    places = [
        (t.get("bus"), *sorted(a.attrib.items()))
        for d in disks
        for t in d.iter("target")
        for a in d.iter("address")
    ]
    assert len(set(places)) == len(places)
    with pytest.raises(InvalidArgument, match=f"{most + 1} disks"):
        render(machine(most + 1))


def test_without_uefi_firmware_the_error_says_what_to_install(tmp_path: Path) -> None:
    """Or what to leave out."""
    with pytest.raises(FailedPrecondition, match="ovmf"):
        find_uefi((Firmware(tmp_path / "code", tmp_path / "vars"),))


def test_secure_boot_is_never_served_by_firmware_without_keys(tmp_path: Path) -> None:
    plain = Firmware(tmp_path / "code", tmp_path / "vars")
    secure = evolve(plain, secure=True)
    for path in (plain.code, plain.variables):
        path.touch()
    assert find_uefi((plain, secure)) == plain
    assert find_uefi((plain, secure), secure=True) == secure
    with pytest.raises(FailedPrecondition, match="uefi-secure.*with keys for secure boot.*ovmf"):
        find_uefi((plain,), secure=True)


@pytest.mark.parametrize(("firmware", "machine"), [("uefi-secure", "pc"), ("coreboot", "q35")])
def test_firmware_that_a_machine_cannot_have_is_refused(firmware: str, machine: str) -> None:
    """Also where a plugin's flavor asks for it, which nobody has checked."""
    flavor = Flavor(firmware=firmware, machine=machine)
    with pytest.raises(FailedPrecondition, match=f"no firmware '{firmware}' for machine"):
        render(evolve(plain(), flavor=flavor))


def test_the_first_firmware_that_is_whole_is_taken(tmp_path: Path) -> None:
    """Code without a template for its variables is of no use."""
    half = Firmware(tmp_path / "half", tmp_path / "nowhere")
    whole = Firmware(tmp_path / "code", tmp_path / "vars")
    for path in (half.code, whole.code, whole.variables):
        path.touch()
    assert find_uefi((half, whole)) == whole


def test_hook_virtlet_render_domain(tmp_path: Path) -> None:
    """The plugin renders any machine, with the node's settings."""
    plugin = Plugin()
    node = make_node(tmp_path, uid=7, gid=8)
    plugin.virtlet_configure(make_config(OPTIONS, cpuModel="Nehalem"), node)
    document = plugin.virtlet_render_domain(plain())
    assert document is not None
    assert document.findtext("seclabel/label") == "+7:+8"
    assert document.findtext("cpu/model") == "Nehalem"


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: evolve(m, flavor=evolve(m.flavor, memory=0)),
        lambda m: evolve(m, flavor=evolve(m.flavor, machine="warp")),
    ],
)
def test_odd_flavors_still_make_well_formed_documents(edit: Callable[[Machine], Machine]) -> None:
    """Whether they can run is libvirt's to say."""
    assert render(edit(plain())).tag == "domain"
