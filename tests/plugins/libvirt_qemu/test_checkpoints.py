"""Checkpoints: the tiny guest's memory and disk are written as it runs, and go on beside it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest
from attrs import evolve, frozen

from tests.plugins.libvirt_qemu.rig import Rig
from tests.plugins.libvirt_qemu.test_templates import FLAVOR, run
from tests.polling import until
from tests.tiny.tiny_guest import BUILD, ROOT
from virtlet.errors import FailedPrecondition, NotFound
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Checkpoint, DomainState
from virtlet.model.launch import ENV_TOKEN, LaunchPart
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu import checkpoints, templates

START = 1 << 18
HEAD = b"head" * 1024


@pytest.fixture(scope="module")
def image() -> Path:
    path = ROOT / "build" / "tiny.qcow2"
    subprocess.run([BUILD, path], check=True)
    return path


def tiny(rig: Rig, image: Path, disk: Path | None = None) -> Machine:
    """A machine with an overlay on an image of the tiny guest, or with a disk that has one."""
    machine = rig.machine()
    backing = machine.vm.image.path
    subprocess.run(["cp", image, backing], check=True)
    backing.chmod(0o644)
    root = machine.vm.directory / "root.qcow2"
    if disk is None:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing)]
        create.append(str(root))
        subprocess.run(create, check=True)
    else:
        disk.rename(root)
        rebase = ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", str(backing), str(root)]
        subprocess.run(rebase, check=True)
    root.chmod(0o600)
    rig.give_away(root, machine)
    made = Disk(path=root, backing=backing)
    return evolve(machine, flavor=FLAVOR, root=made)


@pytest.fixture(scope="module")
def guest(rig: Rig, image: Path) -> Iterator[Machine]:
    machine = tiny(rig, image)
    try:
        rig.define(machine)
        assert rig.start(machine)
        run(
            machine,
            "echo before >/run/before; "
            "(while :; do sleep 1; done) >/dev/null 2>&1 </dev/null & echo $! >/run/pid",
        )
        yield machine
    finally:
        rig.hypervisor.remove(machine.vm.id)


@contextmanager
def new_file(directory: str = "/var/tmp") -> Iterator[int]:
    """A file that nobody else sees, with something at its start."""
    with tempfile.TemporaryFile(dir=directory) as file:
        os.pwrite(file.fileno(), HEAD, 0)
        yield file.fileno()


def on() -> str:
    """Nothing breaks it off."""
    return ""


@frozen
class Left:
    """What a checkpoint may leave in an emulator."""

    status: str
    jobs: Any
    files: Any
    nodes: list[str]
    capabilities: list[str]


NOTHING = Left("running", [], [], [], [])


def left(rig: Rig, machine: Machine) -> Left:
    with rig.domain(machine) as domain:
        ask = partial(templates.ask, domain)
        nodes = [node["node-name"] for node in ask("query-named-block-nodes")]
        return Left(
            ask("query-status")["status"],
            ask("query-jobs"),
            ask("query-fdsets"),
            [name for name in nodes if name.startswith("virtlet")],
            [
                each["capability"]
                for each in ask("query-migrate-capabilities")
                if each["capability"] == "mapped-ram" and each["state"]
            ],
        )


def go_on(rig: Rig, machine: Machine, file: int, taken: Checkpoint) -> None:
    """Start a machine where a checkpoint's guest stood, as the format says."""
    rig.define(machine)
    parts = [
        ("libvirt_qemu", rig.hypervisor.launch(machine)),
        ("test", LaunchPart(arguments=("-incoming", "defer"))),
    ]
    token = machine.environment[ENV_TOKEN]
    rig.launches.arm(machine.vm.id, token, parts, rig.door(machine))
    with rig.domain(machine) as domain:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        assert not rig.launches.disarm(machine.vm.id)
        ask = partial(templates.ask, domain)
        mapped = [{"capability": "mapped-ram", "state": True}]
        ask("migrate-set-capabilities", {"capabilities": mapped})
        with open(f"/proc/self/fd/{file}", "rb") as memory:
            number = ask("add-fd", {}, [memory.fileno()])["fdset-id"]
        uri = f"file:/dev/fdset/{number},offset={taken.memory.offset}"
        ask("migrate-incoming", {"uri": uri})
        until(lambda: ask("query-migrate").get("status") == "completed", "the memory")
        domain.resume()


def test_it_goes_on_beside_the_source(rig: Rig, guest: Machine, image: Path) -> None:
    """What was there at that moment is there again, in memory and on the disk, and nothing else."""
    run(
        guest, "dd if=/dev/urandom of=/root/kept bs=64k count=20 2>/dev/null; sync; echo a >/root/a"
    )
    digest = run(guest, "sha256sum /root/kept")
    with new_file() as file:
        taken = rig.hypervisor.checkpoint(guest, file, START, on)
        rig.hypervisor.settle(guest.vm.id)
        assert left(rig, guest) == NOTHING
        assert os.pread(file, len(HEAD), 0) == HEAD
        assert taken.memory.offset == START
        assert taken.disk.offset >= START + taken.memory.size + 512
        assert taken.memory.size < FLAVOR.memory + (16 << 20)
        # The image's part of the disk is not in it.
        assert taken.disk.size < 16 << 20
        assert taken.stood_still < 60
        until(
            lambda: rig.hypervisor.observe(guest.vm.id).state is DomainState.RUNNING,  # type: ignore[union-attr]
            "the source running",
        )
        run(guest, "echo after >/run/after; rm /root/kept /root/a; sync")

        disk = guest.vm.directory / "taken"
        disk.write_bytes(os.pread(file, taken.disk.size, taken.disk.offset))
        subprocess.run(["qemu-img", "check", "-q", disk], check=True)
        other = tiny(rig, image, disk)
        try:
            go_on(rig, other, file, taken)
            told = run(
                other,
                "cat /run/before /root/a; ls /run/after 2>&1; kill -0 $(cat /run/pid) && "
                "echo alive; echo 3 >/proc/sys/vm/drop_caches; sha256sum /root/kept",
            )
            assert told.startswith("before\na\n")
            assert "No such file" in told
            assert told.endswith(f"alive\n{digest}")
        finally:
            rig.hypervisor.remove(other.vm.id)
    assert run(guest, "cat /run/after; kill -0 $(cat /run/pid) && echo alive") == "after\nalive\n"


def test_one_that_is_broken_off_leaves_nothing(rig: Rig, guest: Machine) -> None:
    with new_file() as file:
        with pytest.raises(FailedPrecondition, match="nobody waits for it"):
            rig.hypervisor.checkpoint(guest, file, START, lambda: "nobody waits for it")
        rig.hypervisor.settle(guest.vm.id)
    assert left(rig, guest) == NOTHING
    assert run(guest, "cat /run/before") == "before\n"


def test_a_full_disk_is_told_and_the_guest_runs_on(
    rig: Rig, guest: Machine, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", tmp_path], check=True)
    try:
        with new_file(str(tmp_path)) as file:
            with pytest.raises(FailedPrecondition, match="No space left"):
                rig.hypervisor.checkpoint(guest, file, START, on)
            rig.hypervisor.settle(guest.vm.id)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert left(rig, guest) == NOTHING
    assert run(guest, "cat /run/before") == "before\n"


def test_a_guest_that_stands_still_is_refused_and_stands_on(rig: Rig, guest: Machine) -> None:
    with rig.domain(guest) as domain, new_file() as file:
        domain.suspend()
        try:
            with pytest.raises(FailedPrecondition, match="does not run, but is paused"):
                rig.hypervisor.checkpoint(guest, file, START, on)
            rig.hypervisor.settle(guest.vm.id)
            assert left(rig, guest) == evolve(NOTHING, status="paused")
        finally:
            domain.resume()


def test_a_vm_that_is_not_there_or_does_not_run_is_refused(rig: Rig) -> None:
    machine = rig.machine()
    with new_file() as file:
        with pytest.raises(NotFound):
            rig.hypervisor.checkpoint(machine, file, START, on)
        rig.define(machine)
        try:
            with pytest.raises(FailedPrecondition, match="does not run"):
                rig.hypervisor.checkpoint(machine, file, START, on)
            rig.hypervisor.settle(machine.vm.id)
        finally:
            rig.hypervisor.remove(machine.vm.id)
        rig.hypervisor.settle(machine.vm.id)


class Killed(BaseException):
    """The manager ends here."""


@pytest.mark.parametrize(
    "at",
    [
        "migrate-set-capabilities",
        "add-fd",
        "migrate",
        "query-migrate",
        "blockdev-set-active",
        "blockdev-add",
        "transaction",
        "cont",
        "query-jobs",
        "job-dismiss",
        "blockdev-del",
    ],
)
def test_one_whose_manager_died_is_settled(rig: Rig, guest: Machine, at: str) -> None:
    """A manager that is killed after any command leaves an emulator that the next one settles."""
    with rig.domain(guest) as domain, new_file() as file:

        def ask(command: str, arguments: Mapping[str, Any] | None = None, files: Any = ()) -> Any:
            answer = templates.ask(domain, command, arguments, files)
            if command == at:
                raise Killed
            return answer

        alias = checkpoints.root_alias(ElementTree.fromstring(domain.XMLDesc()))
        with pytest.raises(Killed):
            checkpoints.take(ask, alias, file, START, on)
        rig.hypervisor.settle(guest.vm.id)
        rig.hypervisor.settle(guest.vm.id)
    assert left(rig, guest) == NOTHING
    assert run(guest, "cat /run/before") == "before\n"


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ("<hostdev/>", "passed-through"),
        ("<filesystem/>", "shared directory"),
        ("<tpm/>", "TPM"),
        ("<vsock/>", "vsock"),
        ("<memory/>", "memory was added"),
        ("<disk device='disk'/>", "2 disks"),
        ("<disk device='cdrom'/>", ""),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(devices: str, why: str) -> None:
    root = "<disk device='disk'><alias name='virtio-disk0'/></disk>"
    document = ElementTree.fromstring(f"<domain><devices>{root}{devices}</devices></domain>")
    assert (why in checkpoints.unfit(document)) if why else not checkpoints.unfit(document)
    assert checkpoints.root_alias(document) == "virtio-disk0"


@pytest.mark.parametrize(
    "flavor",
    [
        Flavor(memory=64 << 20, disk_bus="scsi"),
        Flavor(memory=64 << 20, disk_bus="virtio", disk_iops=500, disk_iothreads=1),
    ],
    ids=["scsi", "limited"],
)
def test_a_root_disk_of_any_kind_is_written(rig: Rig, flavor: Flavor) -> None:
    machine = evolve(rig.machine(), flavor=flavor)
    with rig.running(machine=machine), new_file() as file:
        taken = rig.hypervisor.checkpoint(machine, file, START, on)
        rig.hypervisor.settle(machine.vm.id)
        assert left(rig, machine) == NOTHING
        # The image is raw here, so all that the guest sees of it is in the layer.
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as disk:
            disk.write(os.pread(file, taken.disk.size, taken.disk.offset))
            disk.flush()
            compare = ["qemu-img", "compare", "-q", "-U", "-f", "qcow2", "-F", "raw"]
            subprocess.run([*compare, disk.name, str(machine.root.path)], check=True)


def test_a_guest_that_ends_meanwhile_is_told_and_settled(rig: Rig) -> None:
    """As one does whose kernel panics."""
    machine = evolve(rig.machine(), flavor=Flavor(memory=64 << 20))
    with rig.running(machine=machine), new_file() as file:

        def ended() -> str:
            with rig.domain(machine) as domain, contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            return ""

        with pytest.raises(FailedPrecondition, match="it has ended meanwhile"):
            rig.hypervisor.checkpoint(machine, file, START, ended)
        rig.hypervisor.settle(machine.vm.id)


def test_a_device_that_cannot_be_written_is_named_and_its_guest_runs_on(rig: Rig) -> None:
    """QEMU's NVMe is one."""
    machine = evolve(rig.machine(), flavor=Flavor(memory=64 << 20, disk_bus="nvme"))
    with rig.running(machine=machine), new_file() as file:
        with pytest.raises(FailedPrecondition, match="non-migratable device .*nvme"):
            rig.hypervisor.checkpoint(machine, file, START, on)
        rig.hypervisor.settle(machine.vm.id)
        assert left(rig, machine) == NOTHING
