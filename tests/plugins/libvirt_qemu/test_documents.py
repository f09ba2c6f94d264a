"""The documents of the built-in renderer start, whatever the machine is made of."""

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest
from attrs import evolve

from tests.fakes.boot_sector import write_boot_disk
from tests.plugins.libvirt_qemu.rig import QEMU, Rig
from virtlet.model.disk import Disk, Share
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.launch import ENV_TOKEN
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.disk_growth import DiskGrowth

MIB = 1 << 20


def _boots(rig: Rig, machine: Machine) -> None:
    with rig.running(machine=machine):
        pass


@pytest.mark.parametrize("change", ["lose", "alter", "repeat"])
def test_a_document_without_the_machines_variables_is_unfit(rig: Rig, change: str) -> None:
    """As vmwrapper could not fetch the launch."""
    machine = rig.machine()
    document = rig.document(machine)
    assert rig.hypervisor.review(machine, document) == ""
    [(parent, token)] = [
        (parent, child)
        for parent in document.iter()
        for child in parent
        if child.get("name") == ENV_TOKEN
    ]
    if change == "lose":
        parent.remove(token)
    elif change == "alter":
        token.set("value", "another")
    else:
        parent.append(token)
    said = rig.hypervisor.review(machine, document)
    assert "<qemu:env> elements" in said
    assert machine.environment[ENV_TOKEN] not in said


def test_an_emulator_that_was_started_past_vmwrapper_fetches_no_launch(rig: Rig) -> None:
    """libvirt does not notice; the core ends it and fails the start."""
    machine = evolve(rig.machine(), agent_socket=None)
    document = rig.document(machine)
    emulator = document.find("devices/emulator")
    assert emulator is not None
    emulator.text = str(QEMU)
    try:
        rig.hypervisor.define(machine, document)
        assert rig.hypervisor.launch(machine).required
        assert not rig.start(machine)
    finally:
        rig.hypervisor.remove(machine.vm.id)
    with rig.running() as machine:
        rig.hypervisor.stop(machine.vm.id)
        assert rig.start(machine)


def _seed(machine: Machine) -> Disk:
    path = machine.vm.directory / "seed.iso"
    path.write_bytes(bytes(1 << 16))
    path.chmod(0o444)
    return Disk(path=path, format="raw", readonly=True, kind="cdrom")


@pytest.mark.parametrize("kind", ["q35", "pc"])
@pytest.mark.parametrize("bus", ["scsi", "virtio"])
def test_machine_types_and_buses(rig: Rig, kind: str, bus: str) -> None:
    """With a CD-ROM drive on whatever bus the machine has for it."""
    machine = rig.machine()
    flavor = evolve(machine.flavor, machine=kind, disk_bus=bus, vcpus=2)
    _boots(rig, evolve(machine, flavor=flavor, seed=_seed(machine)))


@pytest.mark.parametrize("bus", ["scsi", "virtio"])
def test_disks_are_as_fast_as_the_flavor_says(rig: Rig, bus: str) -> None:
    """Asked of the running emulator: limits of all disks together, threads, Linux AIO."""
    machine = rig.machine()
    data = machine.vm.directory / "volume-0.raw"
    data.write_bytes(bytes(1 << 20))
    rig.give_away(data, machine)
    flavor = evolve(
        machine.flavor,
        disk_bus=bus,
        disk_cache="none",
        disk_io="native",
        disk_iothreads=2,
        disk_iops=500,
        disk_iops_burst=2000,
        disk_bandwidth=50 << 20,
        disk_burst_seconds=3,
    )
    volumes = (Disk(path=data, format="raw", serial="volume-0"),)
    with rig.running(machine=evolve(machine, flavor=flavor, volumes=volumes)):
        with rig.domain(machine) as domain:
            for name in {"scsi": ("sda", "sdb"), "virtio": ("vda", "vdb")}[bus]:
                limits = domain.blockIoTune(name)
                assert limits["total_iops_sec"] == 500
                assert limits["total_iops_sec_max"] == 2000
                assert limits["total_iops_sec_max_length"] == 3
                assert limits["total_bytes_sec"] == 50 << 20
                assert limits["group_name"] == "disks"
            assert len(domain.ioThreadInfo()) == {"scsi": 1, "virtio": 2}[bus]
        command = Path(f"/proc/{rig.pid(machine)}/cmdline").read_text()
        assert command.count('"aio":"native"') == 2
        assert command.count('"direct":true') >= 2


def test_io_uring_passes_the_jail_where_the_flavor_asks_for_it(rig: Rig) -> None:
    machine = rig.machine()
    flavor = evolve(machine.flavor, disk_io="io_uring", disk_iothreads=1)
    with rig.running(machine=evolve(machine, flavor=flavor)):
        process = Path(f"/proc/{rig.pid(machine)}")
        assert '"aio":"io_uring"' in (process / "cmdline").read_text()
        opened = [os.readlink(path) for path in (process / "fd").iterdir()]
        assert "anon_inode:[io_uring]" in opened


def test_a_machine_starts_from_nvme(rig: Rig) -> None:
    """Each disk with a controller and a serial number of its own; read-only ones too."""
    machine = rig.machine()
    volumes = []
    for number in range(2):
        path = machine.vm.directory / f"volume-{number}.raw"
        path.write_bytes(bytes(1 << 20))
        rig.give_away(path, machine)
        volumes.append(
            Disk(path=path, format="raw", serial=f"volume-{number}", readonly=number == 1)
        )
    flavor = evolve(machine.flavor, disk_bus="nvme", disk_iothreads=2)
    with (
        rig.running(
            machine=evolve(machine, flavor=flavor, volumes=tuple(volumes), seed=_seed(machine))
        ),
        rig.domain(machine) as domain,
    ):
        said = libvirt_qemu.qemuMonitorCommand(domain, "info qtree", 1)
        assert said.count("dev: nvme,") == 3
        for serial in ("disk-0", "volume-0", "volume-1"):
            assert f'serial = "{serial}"' in said


@pytest.mark.parametrize("offset", [0, 512], ids=["volume", "persistent root"])
@pytest.mark.parametrize("bus", ["scsi", "virtio"])
def test_a_device_that_grows_does_so_for_the_guest(
    rig: Rig, bus: str, offset: int, tmp_path: Path
) -> None:
    """Once, and after a look that came when nothing had changed; a shrunk one is left alone.

    How it is cached stays as its flavor says.
    """
    machine = rig.machine()
    told: list[tuple[str, ...]] = []
    growth = DiskGrowth(
        rig.hypervisor._domains,  # type: ignore[attr-defined]
        lambda *words: told.append(words),
    )
    file = tmp_path / "device"
    file.write_bytes(bytes(MIB))
    node = machine.vm.directory / "volume-0"
    disk = Disk(path=node, format="raw", block=True, serial="volume-0")
    if offset:
        disk = evolve(disk, offset=offset, size=MIB - offset)
    flavor = evolve(machine.flavor, disk_bus=bus, disk_cache="none")

    def block_devices() -> Any:
        """The guest's disks as the emulator has them."""
        with rig.domain(machine) as domain:
            query = json.dumps({"execute": "query-block"})
            return json.loads(libvirt_qemu.qemuMonitorCommand(domain, query, 0))["return"]

    def resized(size: int) -> int:
        """Bytes of the guest's disk after the device got a size."""
        os.truncate(file, size)
        subprocess.run(["losetup", "--set-capacity", found], check=True)
        growth.look()
        return int(block_devices()[-1]["inserted"]["image"]["virtual-size"])

    attach = ["losetup", "--find", "--show", str(file)]
    found = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(found).st_rdev)
        rig.give_away(node, machine)
        with rig.running(machine=evolve(machine, flavor=flavor, volumes=(disk,))):
            sizes = [resized(n * MIB) + offset for n in (1, 3, 3, 4, 2)]
            assert sizes == [n * MIB for n in (1, 3, 3, 4, 4)]
            assert block_devices()[-1]["inserted"]["cache"]["direct"]
        growth.look()
        assert growth._known == {}
        assert told == []
    finally:
        subprocess.run(["losetup", "--detach", found], check=True)


@pytest.mark.parametrize("offset", [0, 512], ids=["volume", "persistent root"])
def test_the_owner_is_told_of_an_nvme_disk_that_cannot_grow(
    rig: Rig, offset: int, tmp_path: Path
) -> None:
    """Once for each size, in order: what it has, what it could have, and what to do."""
    machine = rig.machine()
    growth: DiskGrowth = rig.hypervisor._growth  # type: ignore[attr-defined]
    growth.stop()
    file = tmp_path / "device"
    file.write_bytes(bytes(MIB))
    node = machine.vm.directory / "volume-0"
    disk = Disk(path=node, format="raw", block=True, serial="volume-0")
    if offset:
        disk = evolve(disk, offset=offset, size=MIB - offset)
    machine = evolve(machine, flavor=evolve(machine.flavor, disk_bus="nvme"), volumes=(disk,))

    def resize(megabytes: int) -> None:
        os.truncate(file, megabytes * MIB)
        subprocess.run(["losetup", "--set-capacity", found], check=True)

    def notice() -> Observation:
        """The next that the subscriber hears."""
        while True:
            seen = rig.heard.get(timeout=30)
            if seen.notice:
                return seen

    attach = ["losetup", "--find", "--show", str(file)]
    found = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(found).st_rdev)
        rig.give_away(node, machine)
        with rig.running(machine=machine):
            growth.look()
            for megabytes in (2, 3):
                resize(megabytes)
                growth.look()
                growth.look()
            first, second = notice(), notice()
    finally:
        subprocess.run(["losetup", "--detach", found], check=True)
    assert (first.vm_id, first.state, first.topic) == (
        machine.vm.id,
        DomainState.RUNNING,
        "DiskNotGrown",
    )
    assert first.notice == (
        f"the volume of the disk with serial volume-0 has grown to {2 * MIB - offset} bytes, and "
        f"the guest goes on with {MIB - offset}, as NVMe disks keep the size of the VM's start: "
        "run the pod again, or have its disks on scsi or virtio (annotation VirtletDiskDriver), "
        "which grow while it runs"
    )
    assert f"has grown to {3 * MIB - offset} bytes" in second.notice


@pytest.mark.parametrize(("bus", "most"), [("scsi", 26), ("virtio", 20), ("nvme", 20)])
def test_as_many_disks_as_allowed(rig: Rig, bus: str, most: int, tmp_path: Path) -> None:
    """The root disk is still the one that boots."""
    machine = rig.machine()
    volumes = []
    for number in range(most - 1):
        path = machine.vm.directory / f"volume-{number}.raw"
        path.write_bytes(bytes(1 << 20))
        rig.give_away(path, machine)
        volumes.append(Disk(path=path, format="raw", serial=f"volume-{number}"))
    flavor = evolve(machine.flavor, disk_bus=bus)
    _boots(rig, evolve(machine, flavor=flavor, volumes=tuple(volumes), seed=_seed(machine)))


@pytest.mark.parametrize("driver", ["9p", "virtiofs"])
def test_shared_directories(rig: Rig, driver: str) -> None:
    """Read-only and writable ones. A guest that knows no driver of theirs opens none."""
    machine = rig.machine()
    shares = []
    for tag in ("one", "two"):
        path = machine.vm.directory / tag
        path.mkdir()
        rig.give_away(path, machine)
        shares.append(
            Share(
                host_path=path,
                guest_path=f"/mnt/{tag}",
                tag=tag,
                readonly=tag == "one",
                driver=driver,
            )
        )
    with rig.running(machine=evolve(machine, volumes=tuple(shares))):
        opened = rig.hypervisor.opened_shares(machine.vm.id)
        assert opened == ({"one": False, "two": False} if driver == "9p" else {})
    assert rig.hypervisor.opened_shares(machine.vm.id) == {}


@pytest.mark.parametrize("model", ["host-model", "host-passthrough", "Nehalem"])
def test_cpu_models(rig: Rig, model: str) -> None:
    """Also without KVM, where there is no host CPU to pass on."""
    machine = rig.machine()
    _boots(rig, evolve(machine, flavor=evolve(machine.flavor, cpu_model=model)))


def test_a_read_only_image_stays_its_owners(rig: Rig) -> None:
    """libvirt changes nothing of files that VMs share."""
    machine = rig.machine()
    image = rig.node.data_dir / "shared.img"
    write_boot_disk(image)
    image.chmod(0o444)
    _boots(rig, evolve(machine, root=evolve(machine.root, path=image, readonly=True)))
    info = image.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (0, 0, 0o444)


def test_a_fixed_system_uuid(rig: Rig) -> None:
    """QEMU gets the one the pod asks for after the domain's, which stays the VM's id."""
    machine = rig.machine()
    fixed = "4c4c4544-0042-3010-8031-c4c04f503432"
    machine = evolve(machine, flavor=evolve(machine.flavor, system_uuid=fixed))
    with rig.running(machine=machine):
        words = Path(f"/proc/{rig.pid(machine)}/cmdline").read_text().split("\0")
        domains_own = words[words.index("-uuid") + 1]
        assert domains_own.replace("-", "") == machine.vm.id
        assert words.index(f"type=1,uuid={fixed}") > words.index("-uuid")
