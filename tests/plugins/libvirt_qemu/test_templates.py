"""Templates: the tiny guest is frozen once, and clones of it start where it stood."""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.plugins.guest_agent.caller import Caller
from tests.plugins.libvirt_qemu.rig import Rig
from tests.polling import until
from tests.tiny.tiny_guest import BUILD, ROOT
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.disk import Disk, Share
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState
from virtlet.model.network import Network, Nic
from virtlet.model.vm import Machine, Template
from virtlet.plugins.guest_agent.plugin import Plugin as GuestAgent
from virtlet.plugins.libvirt_qemu.templates import basis, launch_part, unfit

MEMORY = 192 << 20
FLAVOR = Flavor(memory=MEMORY, disk_bus="virtio")
BOOT = 240.0
"""Seconds that the guest may take on a loaded machine."""
_AGENTS = GuestAgent()


@frozen
class Frozen:
    """A template, and the disk as it was then."""

    machine: Machine
    disk: Path

    @property
    def directory(self) -> Path:
        assert self.machine.template is not None
        return self.machine.template.directory


def tiny(rig: Rig, image: Path, template: Template | None) -> Machine:
    """A machine with a copy of an image of the tiny guest."""
    machine = rig.machine()
    disk = machine.vm.directory / "root.qcow2"
    shutil.copyfile(image, disk)
    disk.chmod(0o600)
    rig.give_away(disk, machine)
    return evolve(machine, flavor=FLAVOR, root=Disk(path=disk), template=template)


def run(machine: Machine, script: str) -> str:
    """What a script prints in the guest."""
    session = _AGENTS.virtlet_guest_exec(
        machine, GuestCommand(argv=("/bin/sh", "-c", script), captured=True)
    )
    assert session is not None
    caller = Caller()
    assert session.run(caller, BOOT) == 0, caller.errors
    return caller.output.decode()


@pytest.fixture(scope="module")
def template(rig: Rig) -> Iterator[Frozen]:
    image = ROOT / "build" / "tiny.qcow2"
    subprocess.run([BUILD, image], check=True)
    directory = rig.node.data_dir / f"template-{uuid.uuid4().hex}"
    directory.mkdir(mode=0o700)
    machine = tiny(rig, image, Template(directory=directory))
    try:
        rig.define(machine)
        assert rig.start(machine)
        # Processes of the guest that the agent has started are done, and the agent waits.
        run(machine, "echo before >/run/before")
        rig.hypervisor.freeze(machine)
        disk = directory.with_suffix(".qcow2")
        machine.root.path.rename(disk)
        rig.hypervisor.remove(machine.vm.id)
        yield Frozen(machine, disk)
    finally:
        rig.hypervisor.remove(machine.vm.id)
        shutil.rmtree(directory)


@contextmanager
def clone(rig: Rig, template: Frozen, *, mac: str = "") -> Iterator[Machine]:
    """A clone that runs, with a NIC where it has a MAC."""
    machine = tiny(rig, template.disk, Template(directory=template.directory, frozen=True))
    with contextlib.ExitStack() as stack:
        if mac:
            namespace = machine.runtime_directory / "netns"
            netns.create(namespace)
            stack.callback(netns.delete, namespace)
            netns.inside(namespace, _make_tap)
            nic = Nic(name="eth0", mac=mac, mtu=1400, device="tap0")
            vm = evolve(machine.vm, network=Network(netns=namespace, nics=(nic,)))
            machine = evolve(machine, vm=vm)
        stack.callback(rig.hypervisor.remove, machine.vm.id)
        rig.define(machine)
        assert rig.start(machine)
        yield machine


def _make_tap() -> None:
    with Links() as net:
        net.add_tap("tap0")


IDENTITY = """
until [ -e /sys/class/net/eth0/mtu ]; do sleep 0.1; done
head -c 32 /dev/urandom | base64
cat /proc/sys/kernel/random/uuid
cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
cat /run/before
"""


def test_clones_are_two_machines_that_go_on_from_one_memory(rig: Rig, template: Frozen) -> None:
    """Each has what the template's memory had, its own random numbers, and its own NIC."""
    macs = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"]
    with clone(rig, template, mac=macs[0]) as one, clone(rig, template, mac=macs[1]) as other:
        told = [run(machine, IDENTITY).split() for machine in (one, other)]
        assert [words[2:] for words in told] == [[mac, "1400", "before"] for mac in macs]
        assert all(a != b for a, b in zip(told[0][:2], told[1][:2], strict=True))
        assert "crng reseeded" in run(one, "dmesg")
        # What they write is their own, and the template's memory stays as it was.
        run(one, "echo mine >/run/mine")
        assert run(other, "ls /run/mine 2>/dev/null || echo none") == "none\n"
        for machine in (one, other):
            assert rig.hypervisor.observe(machine.vm.id).state is DomainState.RUNNING  # type: ignore[union-attr]
            assert _private(rig.pid(machine)) < MEMORY // 2
    with clone(rig, template, mac=macs[0]) as third:
        assert run(third, "ls /run/mine 2>/dev/null || echo none") == "none\n"


def _private(pid: int) -> int:
    """Bytes of a template's memory that a clone has for itself alone."""
    maps = Path(f"/proc/{pid}/smaps").read_text().split("/ram\n", 1)[1]
    return 1024 * int(maps.split("Private_Dirty:", 1)[1].split()[0])


def test_a_template_has_credentials_for_its_guest_and_clones_have_none(
    rig: Rig, template: Frozen
) -> None:
    """systemd's, as strings of SMBIOS; a clone that boots again is held by nothing."""
    machine = evolve(template.machine, vm=evolve(template.machine.vm, id=uuid.uuid4().hex))
    credentials = {"systemd.unit-dropin.a.service": "[Unit]\n"}
    words = "io.systemd.credential.binary:systemd.unit-dropin.a.service=W1VuaXRdCg=="
    directory = rig.node.data_dir / f"template-{uuid.uuid4().hex}"
    directory.mkdir(mode=0o700)
    try:
        fresh = Template(directory=directory, credentials=credentials)
        part = launch_part(machine, fresh, (0, 0))
        assert f"type=11,value={words}" in part.arguments
    finally:
        shutil.rmtree(directory)
    frozen = Template(directory=template.directory, frozen=True, credentials=credentials)
    assert "-smbios" not in launch_part(machine, frozen, (0, 0)).arguments


def test_a_clone_only_reads_the_memory(rig: Rig, template: Frozen) -> None:
    """Its jail has the file read-only, the state not at all; nobody else has a way to them."""
    status = {name: (template.directory / name).stat() for name in ("ram", "state")}
    assert [(s.st_uid, s.st_mode & 0o777) for s in status.values()] == [(0, 0o444), (0, 0o400)]
    with clone(rig, template) as machine:
        pid = rig.pid(machine)
        jail = ["nsenter", f"--target={pid}", "--user", "--mount", "--preserve-credentials"]
        listing = subprocess.run(
            [*jail, "ls", str(template.directory)], capture_output=True, text=True, check=True
        )
        assert listing.stdout.split() == ["ram"]
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        (ram,) = (line for line in mounts if f"{template.directory}/ram " in line)
        assert "ro" in ram.split()[5].split(",")
        run(machine, "true")


def test_a_clone_goes_through_the_life_of_a_vm(rig: Rig, template: Frozen) -> None:
    """It is measured, found with its state, and powers off by the button."""
    with clone(rig, template) as machine:
        run(machine, "true")
        assert rig.hypervisor.stats()[machine.vm.id].pid
        rig.hypervisor.shutdown(machine.vm.id)
        assert rig.wait_for_end(machine).reason == "Completed"


@pytest.mark.parametrize("flaw", ["missing", "short", "written", "another size", "empty state"])
def test_a_template_that_is_not_whole_starts_nothing(
    rig: Rig, template: Frozen, tmp_path: Path, flaw: str
) -> None:
    """What is wrong is said before anything is started."""
    directory = tmp_path / "template"
    shutil.copytree(template.directory, directory)
    ram, state = directory / "ram", directory / "state"
    memory = MEMORY
    if flaw == "missing":
        state.unlink()
    elif flaw == "short":
        os.truncate(ram, MEMORY - 4096)
    elif flaw == "written":
        ram.chmod(0o644)
    elif flaw == "another size":
        memory *= 2
    else:
        os.truncate(state, 0)
    machine = tiny(rig, template.disk, Template(directory=directory, frozen=True))
    machine = evolve(machine, flavor=evolve(FLAVOR, memory=memory))
    try:
        rig.define(machine)
        with pytest.raises(FailedPrecondition, match=r"template"):
            rig.start(machine)
        assert rig.hypervisor.observe(machine.vm.id).state is DomainState.DEFINED  # type: ignore[union-attr]
    finally:
        rig.hypervisor.remove(machine.vm.id)


@pytest.mark.parametrize("change", ["state cut off", "another disk bus"])
def test_a_state_that_does_not_fit_is_an_error_that_leaves_no_emulator(
    rig: Rig, template: Frozen, tmp_path: Path, change: str
) -> None:
    """QEMU ends itself, or says that it cannot; the VM can be started without the template."""
    directory = tmp_path / "template"
    shutil.copytree(template.directory, directory)
    flavor = FLAVOR
    if change == "state cut off":
        os.truncate(directory / "state", 4096)
    else:
        flavor = evolve(FLAVOR, disk_bus="scsi")
    machine = tiny(rig, template.disk, Template(directory=directory, frozen=True))
    machine = evolve(machine, flavor=flavor)
    vm_id = machine.vm.id
    try:
        rig.define(machine)
        with pytest.raises(FailedPrecondition, match="did not start from template"):
            rig.start(machine)
        until(lambda: rig.hypervisor.process(vm_id) is None, "the end of its emulator")
        cold = evolve(machine, template=None)
        rig.define(cold)
        assert rig.start(cold)
        assert rig.hypervisor.observe(vm_id).state is DomainState.RUNNING  # type: ignore[union-attr]
    finally:
        rig.hypervisor.remove(vm_id)


def test_what_was_not_started_as_a_template_is_not_frozen(rig: Rig) -> None:
    """Its memory is in no file."""
    with (
        rig.running() as machine,
        pytest.raises(FailedPrecondition, match="was not started as a template"),
    ):
        rig.hypervisor.freeze(machine)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"machine": "pc"}, "no free ports"),
        ({"firmware": "uefi"}, "keeps variables"),
        ({"max_vcpus": 4}, "vCPUs can grow"),
        ({"max_memory": MEMORY * 2}, "memory can grow"),
        ({"nested": True}, "VMs of its own"),
        ({"vsock": True}, "has vsock"),
        ({"lock_memory": True}, "memory is locked"),
        ({}, ""),
    ],
)
def test_machines_that_have_no_part_in_templates(
    rig: Rig, change: dict[str, Any], reason: str
) -> None:
    """Each with the reason."""
    machine = evolve(rig.machine(), flavor=evolve(FLAVOR, **change))
    assert reason in rig.hypervisor.unfit_for_template(machine)
    assert bool(reason) == bool(rig.hypervisor.unfit_for_template(machine))


def test_shares_and_many_nics_have_no_part_in_templates(rig: Rig) -> None:
    """Neither has a VM outside of a jail."""
    machine = evolve(rig.machine(), flavor=FLAVOR)
    share = Share(host_path=Path("/srv"), guest_path="/srv", tag="srv")
    assert "shared directory" in rig.hypervisor.unfit_for_template(
        evolve(machine, volumes=(share,))
    )
    nics = tuple(Nic(name=f"eth{n}", mac=f"02:00:00:00:00:0{n}", mtu=1500) for n in range(5))
    network = Network(netns=None, nics=nics)
    several = evolve(machine, vm=evolve(machine.vm, network=network))
    assert "4 NICs" in rig.hypervisor.unfit_for_template(several)
    assert "emulatorJail" in unfit(machine, jailed=False)


def test_a_template_is_of_one_cpu_and_one_emulator(rig: Rig, tmp_path: Path) -> None:
    """Its versions, its accelerator, and its file: a package may replace it while we run."""
    told = rig.hypervisor.template_basis()
    ours = {"ports", "generation"}
    assert set(told) == {"libvirt", "qemu", "accelerator", "cpu", "emulator"} | ours
    assert all(told.values())
    assert "flags" in told["cpu"]
    assert "model name" in told["cpu"]
    assert rig.hypervisor.template_basis() == told
    emulator = tmp_path / "qemu"
    emulator.write_text("one")
    before = basis(emulator)["emulator"]
    emulator.with_suffix(".new").write_text("two")
    emulator.with_suffix(".new").replace(emulator)
    assert basis(emulator)["emulator"] != before


def test_a_full_disk_ends_a_template_that_is_made(rig: Rig, template: Frozen) -> None:
    """Its memory is a file there: the emulator ends, which freezing tells, and nothing stays."""
    directory = rig.node.data_dir / f"template-{uuid.uuid4().hex}"
    directory.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", directory], check=True)
    try:
        machine = tiny(rig, ROOT / "build" / "tiny.qcow2", Template(directory=directory))
        vm_id = machine.vm.id
        try:
            rig.define(machine)
            rig.start(machine)
            until(lambda: rig.hypervisor.process(vm_id) is None, "the end of its emulator", BOOT)
            with pytest.raises(VirtletError):
                rig.hypervisor.freeze(machine)
        finally:
            rig.hypervisor.remove(vm_id)
        assert rig.hypervisor.observe(vm_id) is None
    finally:
        # Neither the emulator nor its jail holds it any more.
        subprocess.run(["umount", directory], check=True)
        directory.rmdir()
