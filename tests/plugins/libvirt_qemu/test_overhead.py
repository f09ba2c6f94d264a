"""What QEMU needs beside the guest, by one formula that code, docs and RuntimeClasses share."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import evolve

from tests.fakes.models import machine
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.network import Network, Nic
from virtlet.model.quantity import parse_bytes
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.consumption import overhead

ROOT = Path(__file__).parents[3]
MIB, GIB = 1 << 20, 1 << 30


def _machine(
    flavor: Flavor, *, disks: int = 0, nics: int = 1, accelerator: str = "qemu"
) -> Machine:
    """A machine with a seed, so many data disks and NICs."""
    made = machine(Path("/nowhere"))
    network = Network(
        netns=None,
        nics=tuple(Nic(name=f"net{n}", mac="", mtu=1500) for n in range(nics)),
    )
    return evolve(
        made,
        vm=evolve(made.vm, network=network),
        flavor=flavor,
        seed=Disk(path=Path("/seed")),
        volumes=tuple(Disk(path=Path(f"/disk{n}")) for n in range(disks)),
        accelerator=accelerator,
    )


PLAIN = Flavor(memory=128 * MIB)


@pytest.mark.parametrize(
    ("flavor", "others", "mib"),
    [
        (PLAIN, {"accelerator": "kvm"}, 64 + 4 + 3 + 0.5),
        (PLAIN, {}, 64 + 4 + 3 + 64 + 8 + 2),
        (evolve(PLAIN, video="vga"), {"accelerator": "kvm"}, 64 + 4 + 3 + 32 + 0.5),
        (evolve(PLAIN, translation_buffer=128 * MIB), {}, 64 + 4 + 3 + 128 + 16 + 2),
        (evolve(PLAIN, vcpus=4), {}, 64 + 16 + 3 + 64 + 8 + 2),
        (evolve(PLAIN, max_vcpus=4), {}, 64 + 16 + 3 + 64 + 8 + 2),
        (evolve(PLAIN, max_memory=GIB), {}, 64 + 4 + 3 + 64 + 8 + 2),
        (PLAIN, {"disks": 3, "nics": 2}, 64 + 4 + 7 + 64 + 8 + 2),
        (evolve(PLAIN, root_size=80 * GIB), {"accelerator": "kvm"}, 64 + 4 + 3 + 10 + 0.5),
        (evolve(PLAIN, root_size=80 << 40), {"accelerator": "kvm"}, 64 + 4 + 3 + 32 + 0.5),
    ],
)
def test_every_part_of_a_machine_counts(flavor: Flavor, others: dict[str, Any], mib: float) -> None:
    assert round(overhead(_machine(flavor, **others)) / MIB, 2) == mib


def _classes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "cluster" / "runtimeclass.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents}


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("virtlet", Flavor(vcpus=4, memory=2 * GIB, root_size=20 * GIB)),
        ("virtlet-large", Flavor(vcpus=8, memory=16 * GIB, root_size=100 * GIB)),
    ],
)
def test_the_runtime_classes_hold_the_largest_machine_that_they_say_they_do(
    name: str, largest: Flavor
) -> None:
    """With and without KVM, with four data disks and two NICs, and with 32 MiB to spare at most."""
    declared = parse_bytes(_classes()[name]["overhead"]["podFixed"]["memory"])
    need = overhead(_machine(largest, disks=4, nics=2))
    assert need <= declared < need + 32 * MIB
    said = re.sub(r"\n# *", " ", (ROOT / "deploy" / "cluster" / "runtimeclass.yaml").read_text())
    size = f"{largest.vcpus} vCPUs, {largest.memory // GIB}Gi of RAM, a root disk of"
    assert f"{name}: {size} {largest.root_size // GIB}Gi" in said
    with_kvm = overhead(_machine(largest, disks=4, nics=2, accelerator="kvm"))
    assert f"{-(-with_kvm // MIB)}Mi with KVM" in said
