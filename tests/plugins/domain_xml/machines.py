"""Machines whose documents are kept as golden files."""

from collections.abc import Mapping
from pathlib import Path

from attrs import evolve

from tests.fakes.model import make_image, make_pod, make_vm, make_vm_config
from virtlet.model.disk import Disk, GuestFiles, Share
from virtlet.model.flavor import Flavor
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM
from virtlet.model.resources import Resources
from virtlet.model.vm import Console, Machine
from virtlet.plugins.domain_xml.render import EXTRA, Firmware

DATA = Path("/var/lib/virtlet")
VOLUMES = DATA / "volumes" / ("b" * 32)
RUN = DATA / "run/vm/bbbbbbbbbbbb"
FIRMWARE = Firmware(Path("/usr/share/OVMF/CODE.fd"), Path("/usr/share/OVMF/VARS.fd"))
_PINNED = Resources(cpuset_cpus="0")


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
    }
