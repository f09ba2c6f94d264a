"""Pods that are restored on a node in memory: what is refused, and what a crash leaves."""

import errno
import itertools
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from attrs import Factory, evolve, frozen

from tests.core.lifecycle.conftest import Managers
from tests.fakes.hypervisor import EMPTY_DISK
from tests.fakes.manager import IMAGE, Killed, Node
from tests.polling import until
from virtlet.core import read_checkpoint
from virtlet.core.checkpoint_archive import HEADER, ROOM, START
from virtlet.core.lifecycle import restores
from virtlet.core.lifecycle.checkpoints import checkpoint_pod
from virtlet.core.store.records import VmPhase
from virtlet.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    VirtletError,
)
from virtlet.model.flavor import Flavor
from virtlet.model.network import Nic
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.vm import VmConfig, VmMetadata

MEMORY = 1 << 20
MACS = "52:54:00:00:00:01", "52:54:00:00:00:02"
DISK_AT = START + 8192


@frozen
class Taken:
    """A checkpoint of a pod that is stopped, on a node where the next NIC has another address."""

    managers: Managers
    directory: Path
    key_file: Path | None = None

    @property
    def archive(self) -> Path:
        return self.directory / ("vm.tar.encrypted" if self.key_file else "vm.tar")

    def restore(self, name: str = "again", **more: Any) -> tuple[str, str]:
        root = self.managers.node.root
        metadata = PodMetadata(name=name, uid=f"uid-{name}", namespace="default")
        config = PodConfig(metadata=metadata, log_directory=str(root / "logs" / name))
        vm = VmConfig(metadata=VmMetadata(name="guest"), image=IMAGE, log_path="guest/0.log")
        return restores.restore_pod(
            self.managers.now.context,
            self.directory,
            evolve(config, **{k: v for k, v in more.items() if k in ("annotations", "metadata")}),
            "",
            evolve(vm, **{k: v for k, v in more.items() if k in ("image",)}),
            self.key_file,
            new_identity=more.get("new_identity", False),
        )

    def refused(self, error: type[VirtletError], why: str, **more: Any) -> None:
        """Restoring it is refused, and nothing was made for that."""
        faults = self.managers.node.faults
        faults.passed.clear()
        with pytest.raises(error, match=why):
            self.restore(**more)
        assert "setup_network" not in faults.passed
        assert "root_disk" not in faults.passed
        assert not [pod for pod in self.managers.now.store.pods.values() if pod.was_up]

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the manifest."""
        with self.archive.open("r+b") as file:
            manifest = json.loads(os.pread(file.fileno(), ROOM, HEADER))
            change(manifest)
            os.pwrite(file.fileno(), json.dumps(manifest).encode().ljust(ROOM), HEADER)


def nics_of(mac: str) -> tuple[Nic, ...]:
    return (Nic(name="eth0", mac=mac, mtu=1500),)


def taken_by(
    managers: Managers,
    directory: Path,
    key_file: Path | None = None,
    *,
    guest_agent: bool = False,
) -> Taken:
    node, manager = managers.node, managers.now
    node.flavor = lambda config: Flavor(memory=MEMORY, guest_agent=guest_agent)
    node.overlays = True
    node.nics = nics_of(MACS[0])
    vm_id = manager.create(manager.run())
    manager.start(vm_id)
    pod_id = manager.vm(vm_id).vm.pod.id
    directory.mkdir()
    checkpoint_pod(manager.context, pod_id, [vm_id], directory, key_file=key_file)
    manager.remove_pod(pod_id)
    node.nics = nics_of(MACS[1])
    return Taken(managers, directory, key_file)


@pytest.fixture
def taken(managers: Managers, tmp_path: Path) -> Taken:
    return taken_by(managers, tmp_path / "checkpoint")


def test_it_is_created_with_the_guests_mac_and_goes_on_when_it_is_started(taken: Taken) -> None:
    """Where the guest cannot be told what is new, its owner is."""
    manager, node = taken.managers.now, taken.managers.node
    pod_id, vm_id = taken.restore()
    record = manager.vm(vm_id)
    assert record.phase is VmPhase.CREATED
    assert node.hypervisor.running == set()
    assert [nic.mac for nic in record.vm.network.nics] == [MACS[0]]
    assert (record.vm.directory / "saved").stat().st_mode & 0o777 == 0o700
    manager.start(vm_id)
    assert node.hypervisor.loaded == {vm_id: b"memory"}
    assert manager.vm(vm_id).phase is VmPhase.RUNNING
    assert (record.vm.directory / "root").read_bytes() == EMPTY_DISK
    assert not (record.vm.directory / "saved").exists()
    told = [event.reason for event in manager.told.events if event.topic == "RestoredHalf"]
    assert any("clock could not be set right" in text for text in told)
    manager.remove_pod(pod_id)
    assert node.left == []


def test_the_guest_is_told_time_and_network(taken: Taken) -> None:
    manager, node = taken.managers.now, taken.managers.node
    node.guest = lambda: b""
    _, vm_id = taken.restore()
    manager.start(vm_id)
    assert not [event for event in manager.told.events if event.topic == "RestoredHalf"]


@frozen
class Guest:
    """What a guest with an agent was told."""

    commands: list[tuple[str, ...]] = Factory(list)
    cannot: set[str] = Factory(set)
    """Words of commands that fail."""

    def run(self, argv: tuple[str, ...]) -> int:
        self.commands.append(argv)
        return 3 * any(word in " ".join(argv) for word in self.cannot)


def copyable(managers: Managers, directory: Path, guest: Guest) -> Taken:
    """A checkpoint of a guest that has an agent."""
    managers.node.run_in_guest = guest.run
    return taken_by(managers, directory, guest_agent=True)


def test_a_copy_becomes_another_one_beside_the_source(managers: Managers, tmp_path: Path) -> None:
    """Its NICs have the new pod's addresses, and the guest is told which were which."""
    guest = Guest()
    taken = copyable(managers, tmp_path / "checkpoint", guest)
    node = managers.node
    node.nics = nics_of(MACS[0])
    source = managers.now.create(managers.now.run("source"))
    managers.now.start(source)
    node.nics = nics_of(MACS[1])
    guest.commands.clear()
    with pytest.raises(FailedPrecondition, match="or restore a copy with a new one"):
        taken.restore()
    pod_id, vm_id = taken.restore("copy", new_identity=True)
    assert guest.commands == []
    assert [nic.mac for nic in managers.now.vm(vm_id).vm.network.nics] == [MACS[1]]
    managers.now.start(vm_id)
    clock, copy = guest.commands
    assert clock[0] == "date"
    assert copy == ("/usr/sbin/virtlet-thaw", "copy", f"{MACS[0]}={MACS[1]}")
    assert node.hypervisor.loaded == {vm_id: b"memory"}
    assert node.hypervisor.running == {source, vm_id}
    assert not (managers.now.vm(vm_id).vm.directory / "saved").exists()
    managers.now.remove_pod(pod_id)
    assert node.hypervisor.running == {source}


def test_a_guest_that_cannot_become_another_one_is_refused_by_name(
    managers: Managers, tmp_path: Path
) -> None:
    """Before anything is made; it may go on as who it is."""
    guest = Guest(cannot={"copyable"})
    taken = copyable(managers, tmp_path / "one", guest)
    why = r"cannot become another one: its guest cannot take a new identity \(exit code 3\)"
    taken.refused(FailedPrecondition, why, new_identity=True)
    pod_id, vm_id = taken.restore()
    managers.now.start(vm_id)
    managers.now.remove_pod(pod_id)
    assert managers.node.left == []


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (None, FailedPrecondition, "its flavor has no guest agent"),
        ("bad\n\x1b[0m", FailedPrecondition, r"another one: bad\?\?\[0m"),
        (7, InvalidArgument, "whyNoCopy is no text"),
        ("x" * 301, InvalidArgument, "whyNoCopy is no text"),
    ],
)
def test_what_a_manifest_says_of_copies_is_bounded(
    taken: Taken, said: object, error: type[VirtletError], why: str
) -> None:
    if said is not None:
        taken.rewrite(_set("whyNoCopy", value=said))
    taken.refused(error, why, new_identity=True)


def test_a_checkpoint_that_does_not_say_whether_it_can_be_copied_is_not(taken: Taken) -> None:
    taken.rewrite(lambda manifest: manifest.pop("whyNoCopy"))
    taken.refused(FailedPrecondition, "was not asked by the version", new_identity=True)
    taken.restore()


@pytest.mark.parametrize("point", ["running:applied", "saved:renewed"])
def test_a_copy_whose_start_is_cut_short_becomes_another_one_at_the_next(
    managers: Managers, tmp_path: Path, point: str
) -> None:
    guest = Guest()
    taken = copyable(managers, tmp_path / "checkpoint", guest)
    _, vm_id = taken.restore(new_identity=True)
    managers.now.at[point] = Killed()
    with pytest.raises(Killed):
        managers.now.start(vm_id)
    manager = managers.restart()
    until(lambda: manager.vm(vm_id).phase is VmPhase.CREATED, "to be started again")
    assert managers.node.hypervisor.running == set()
    guest.commands.clear()
    manager.start(vm_id)
    assert guest.commands[1][:2] == ("/usr/sbin/virtlet-thaw", "copy")
    assert (manager.vm(vm_id).vm.directory / "root").read_bytes() == EMPTY_DISK
    assert not (manager.vm(vm_id).vm.directory / "saved").exists()


def test_a_guest_that_fails_to_become_another_one_does_not_stay_up(
    managers: Managers, tmp_path: Path
) -> None:
    guest = Guest()
    taken = copyable(managers, tmp_path / "checkpoint", guest)
    guest.cannot.add("copy")
    pod_id, vm_id = taken.restore(new_identity=True)
    with pytest.raises(FailedPrecondition, match="cannot take a new identity"):
        managers.now.start(vm_id)
    assert managers.now.vm(vm_id).phase is VmPhase.EXITED
    assert managers.node.hypervisor.running == set()
    managers.now.remove_pod(pod_id)
    assert managers.node.left == []


def test_a_second_pod_with_the_guests_addresses_is_refused_also_at_the_same_time(
    taken: Taken,
) -> None:
    faults = taken.managers.node.faults
    go = faults.stuck["setup_network"] = threading.Event()
    results: list[object] = []

    def restore(name: str) -> None:
        try:
            results.append(taken.restore(name))
        except FailedPrecondition as error:
            results.append(str(error))

    threads = [threading.Thread(target=restore, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    until(lambda: "setup_network" in faults.passed, "one under way")
    go.set()
    for thread in threads:
        thread.join()
    (refused,) = [result for result in results if isinstance(result, str)]
    assert "is up and has a MAC address" in refused
    assert len(taken.managers.now.store.vms) == 1
    (name,) = [record.pod.config.metadata.name for record in taken.managers.now.store.pods.values()]
    with pytest.raises(AlreadyExists, match="remove pod"):
        taken.restore(name)


def _key(path: Path, letter: bytes = b"k") -> Path:
    path.write_bytes(letter * 32)
    path.chmod(0o600)
    return path


def test_an_encrypted_one_goes_on_by_its_key_alone_and_whole(
    managers: Managers, tmp_path: Path
) -> None:
    """Else it is refused before anything is made, and nothing of it is left decrypted."""
    taken = taken_by(managers, tmp_path / "checkpoint", _key(tmp_path / "key"))
    sealed = taken.archive.read_bytes()
    other = evolve(taken, key_file=_key(tmp_path / "other", b"o"))
    other.refused(FailedPrecondition, "not of this key")
    evolve(taken, key_file=None).refused(FailedPrecondition, "is encrypted: give its key file")
    evolve(taken, key_file=tmp_path / "none").refused(FailedPrecondition, "key file .*No such file")
    taken.archive.write_bytes(sealed[:-1])
    taken.refused(InvalidArgument, "not all of an encrypted checkpoint")
    taken.archive.write_bytes(sealed[:-40] + bytes([sealed[-40] ^ 1]) + sealed[-39:])
    taken.refused(VirtletError, "was changed")
    assert managers.node.left == []
    taken.archive.write_bytes(sealed)
    pod_id, vm_id = taken.restore()
    managers.now.start(vm_id)
    assert managers.node.hypervisor.loaded == {vm_id: b"memory"}
    managers.now.remove_pod(pod_id)
    assert managers.node.left == []


def test_a_key_for_what_is_not_encrypted_is_refused(taken: Taken, tmp_path: Path) -> None:
    keyed = evolve(taken, key_file=_key(tmp_path / "key"))
    keyed.refused(FailedPrecondition, "is not encrypted: restore it without")


@pytest.mark.parametrize("where", ["before", "meanwhile"])
def test_a_disk_without_space_to_decrypt_is_told(
    managers: Managers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    taken = taken_by(managers, tmp_path / "checkpoint", _key(tmp_path / "key"))
    if where == "before":
        monkeypatch.setattr(read_checkpoint, "free_bytes", lambda file: 1)
    else:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(read_checkpoint, "decrypt", Mock(side_effect=full))
    taken.refused(ResourceExhausted, "free some")
    assert managers.node.left == []


def _set(*names: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        for name in names[:-1]:
            manifest = manifest[name]
        manifest[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (
            _set("format", value=2),
            FailedPrecondition,
            "format 2, and this version restores format 1",
        ),
        (_set("format", value=True), FailedPrecondition, "format"),
        (_set("format", value="1"), FailedPrecondition, "format unknown"),
        (_set("container", value="other"), InvalidArgument, "container 'other'"),
        (_set("container", value=["x"]), InvalidArgument, "container is no name"),
        (_set("image", "id", value="sha256:0"), FailedPrecondition, "is of image 'sha256:0'"),
        (_set("image", value=None), InvalidArgument, "image.id is no name"),
        (_set("nics", value={}), InvalidArgument, "no list of NICs"),
        (_set("nics", value=[{}] * 65), InvalidArgument, "no list of NICs"),
        (_set("nics", value=[{"mac": "x"}]), InvalidArgument, "no MAC"),
        (_set("nics", value=[{"mac": "01:00:5e:00:00:01"}]), InvalidArgument, "no MAC"),
        (_set("machine", value=[]), InvalidArgument, "machine is no object"),
        (_set("machine", "hypervisor", value="x"), FailedPrecondition, "hypervisor is 'x' there"),
        (_set("machine", "namespace", value="o"), FailedPrecondition, "namespace is 'o' there"),
        (_set("machine", "flavor", "vcpus", value=9), FailedPrecondition, "vcpus is '9' there and"),
        (_set("machine", "flavor", value=0), FailedPrecondition, "flavor is another one"),
        (_set("machine", "basis", value={}), FailedPrecondition, "basis.qemu is 'None' there and"),
        (_set("memory", "size", value=1 << 40), InvalidArgument, "memory has not the size"),
        (_set("memory", "size", value=-1), InvalidArgument, "memory has not the size"),
        (_set("memory", "size", value="6"), InvalidArgument, "memory.size is no number"),
        (_set("disk", "size", value=1), InvalidArgument, "disk.qcow2 has not the size"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_name_before_anything_is_made(
    managers: Managers,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    error: type[VirtletError],
    why: str,
) -> None:
    managers.node.hypervisor.basis = {"qemu": "10.0", "emulator": "this file"}
    taken = taken_by(managers, tmp_path / "checkpoint")
    managers.node.hypervisor.basis["emulator"] = "another file"
    taken.rewrite(change)
    taken.refused(error, why)


def test_one_that_fits_but_for_the_machine_as_it_was_made_leaves_nothing(taken: Taken) -> None:
    """How much memory fits into a pod, and its document, are known only then."""
    faults, node = taken.managers.node.faults, taken.managers.node
    taken.rewrite(_set("machine", "flavor", "memory", value=5))
    with pytest.raises(FailedPrecondition, match="flavor.memory is '5' there"):
        taken.restore()
    taken.rewrite(_set("machine", "flavor", "memory", value=MEMORY))
    node.nics = ()
    with pytest.raises(FailedPrecondition, match="gets 0 NICs, and the checkpoint's guest has 1"):
        taken.restore()
    node.nics = nics_of(MACS[1])
    faults.once["define"] = FailedPrecondition("libvirt refuses it")
    with pytest.raises(FailedPrecondition, match="libvirt refuses it"):
        taken.restore()
    assert node.left == []
    assert not taken.managers.now.store.pods
    taken.restore()


def test_an_image_that_is_another_one_or_missing_is_named(taken: Taken) -> None:
    taken.refused(FailedPrecondition, "has to be in the store", image="missing")


def _patched(at: int, data: bytes) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), data, at)

    return change


def _header(at: int, **changes: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            member = tarfile.TarInfo.frombuf(os.pread(file.fileno(), HEADER, at), "utf-8", "strict")
            for name, value in changes.items():
                setattr(member, name, value)
            os.pwrite(file.fileno(), member.tobuf(tarfile.GNU_FORMAT), at)

    return change


def _disk(**fields: int) -> Callable[[Path], object]:
    places = {"version": (4, 4), "backing": (8, 8), "size": (24, 8), "incompatible": (72, 8)}

    def change(path: Path) -> None:
        for name, value in fields.items():
            at, length = places[name]
            _patched(DISK_AT + at, value.to_bytes(length))(path)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: os.truncate(path, 0), "manifest.json is not at its place"),
        (lambda path: os.truncate(path, HEADER), "ends within manifest.json"),
        (lambda path: os.truncate(path, START), "ends within memory"),
        (lambda path: os.truncate(path, DISK_AT + 8), "ends within disk.qcow2"),
        (_patched(HEADER, b"\0" * 100), "manifest.json is not JSON"),
        (_patched(HEADER, b"[" * ROOM), "manifest.json is not JSON"),
        (_patched(HEADER, b"9" * ROOM), "manifest.json is not JSON"),
        (_patched(HEADER, b"[]".ljust(ROOM)), "manifest.json is no object"),
        (_header(0, name="../../etc/passwd"), "manifest.json is not at its place"),
        (_header(START - HEADER, name="/memory"), "memory is not at its place"),
        (_header(START - HEADER, type=tarfile.SYMTYPE), "memory is not at its place"),
        (_header(START - HEADER, size=1 << 60), "ends within memory"),
        (_header(DISK_AT - HEADER, type=tarfile.LNKTYPE), "disk.qcow2 is not at its place"),
        (_header(DISK_AT - HEADER, name="disk"), "disk.qcow2 is not at its place"),
        (_patched(DISK_AT, b"#!/bin/sh"), "no qcow2"),
        (_disk(backing=104), "backing file"),
        (_disk(incompatible=4), "external file"),
        (_disk(version=9), "version 9"),
    ],
)
def test_an_archive_that_is_not_as_we_write_them_is_refused(
    taken: Taken, change: Callable[[Path], object], why: str
) -> None:
    change(taken.archive)
    taken.refused(InvalidArgument, why)


def test_bombs_are_refused(taken: Taken) -> None:
    """Disks of another size, memory that no such machine has, and more than there is space for."""
    node = taken.managers.node
    _disk(size=1 << 50)(taken.archive)
    with pytest.raises(InvalidArgument, match="not of the size of the VM's"):
        taken.restore()
    _disk(size=1 << 20)(taken.archive)
    assert node.left == []

    huge = 1 << 33
    with taken.archive.open("r+b") as file:
        disk = os.pread(file.fileno(), HEADER + len(EMPTY_DISK), DISK_AT - HEADER)
        os.pwrite(file.fileno(), disk, START + huge)
        os.truncate(file.fileno(), START + huge + (1 << 20))
    _header(START - HEADER, size=huge)(taken.archive)
    taken.rewrite(_set("memory", "size", value=huge))
    taken.refused(InvalidArgument, "more than a machine of 1Mi has")


def test_one_that_does_not_fit_on_the_disk_is_refused(taken: Taken) -> None:
    with taken.archive.open("r+b") as file:
        os.truncate(file.fileno(), (1 << 43) - (1 << 20))
    size = 1 << 42
    _header(DISK_AT - HEADER, size=size)(taken.archive)
    taken.rewrite(_set("disk", "size", value=size))
    taken.refused(ResourceExhausted, "are free: free some")


def test_what_is_no_directory_or_no_file_of_its_own_is_refused(
    taken: Taken, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(taken.directory)
    empty = tmp_path / "empty"
    empty.mkdir()
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "vm.tar").symlink_to(taken.archive)
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    os.mkfifo(pipe / "vm.tar")
    for path, error, why in (
        (link, FailedPrecondition, "cannot be read"),
        (empty, FailedPrecondition, "cannot be read: No such file"),
        (planted, FailedPrecondition, "cannot be read"),
        (pipe, InvalidArgument, "no ordinary file"),
        (Path("relative"), InvalidArgument, "not the absolute path"),
        (tmp_path / ".." / "x", InvalidArgument, "not the absolute path"),
    ):
        evolve(taken, directory=path).refused(error, why)


def test_one_that_is_changed_once_it_was_copied_changes_nothing(taken: Taken) -> None:
    _, vm_id = taken.restore()
    taken.archive.write_bytes(b"somebody's")
    taken.managers.now.start(vm_id)
    assert taken.managers.node.hypervisor.loaded == {vm_id: b"memory"}


def test_a_start_that_fails_ends_the_vm_and_its_removal_leaves_nothing(taken: Taken) -> None:
    manager, node = taken.managers.now, taken.managers.node
    pod_id, vm_id = taken.restore()
    node.faults.once["started"] = FailedPrecondition("QEMU's migrate-incoming: no")
    with pytest.raises(FailedPrecondition, match="migrate-incoming"):
        manager.start(vm_id)
    assert manager.vm(vm_id).phase is VmPhase.EXITED
    manager.remove_pod(pod_id)
    assert node.left == []


def test_a_pod_that_cannot_be_undone_yet_goes_when_that_is_tried_again(taken: Taken) -> None:
    node = taken.managers.node
    node.faults.once["root_disk"] = FailedPrecondition("no space")
    node.faults.once["teardown_network"] = FailedPrecondition("CNI is away")
    with pytest.raises(FailedPrecondition, match="no space") as caught:
        taken.restore()
    assert any("CNI is away" in note for note in caught.value.__notes__)
    taken.managers.restart()
    assert node.left == []
    assert not taken.managers.now.store.pods


def test_a_crash_at_any_place_leaves_all_or_nothing(tmp_path: Path) -> None:
    """A start begins again with the disk as it was."""
    numbers = itertools.count()

    def life(point: str) -> list[str]:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        managers = Managers(Node(root))
        taken = taken_by(managers, root / "checkpoint")
        node, passed = managers.node, len(managers.now.points)

        def up() -> None:
            _, vm_id = taken.restore()
            managers.now.start(vm_id)

        def meddle(vm_id: str) -> None:
            (managers.now.vm(vm_id).vm.directory / "root").write_bytes(b"the guest ran")

        if point:
            managers.now.at[point] = Killed()
            node.hypervisor.on_start = meddle
            with pytest.raises(Killed):
                up()
            node.hypervisor.on_start = None
        else:
            up()
        points = managers.now.points[passed:]
        manager = managers.restart()
        if not manager.store.vms:
            assert not manager.store.pods, point
            assert node.left == [], point
            _, vm_id = taken.restore()
        (vm_id,) = manager.store.vms
        until(lambda: manager.vm(vm_id).phase in (VmPhase.CREATED, VmPhase.RUNNING), "a VM")
        if manager.vm(vm_id).phase is VmPhase.CREATED:
            manager.start(vm_id)
            assert (manager.vm(vm_id).vm.directory / "root").read_bytes() == EMPTY_DISK, point
        assert node.hypervisor.loaded[vm_id] == b"memory", point
        assert node.hypervisor.running == {vm_id}, point
        saved = manager.vm(vm_id).vm.directory / "saved"
        until(lambda: not saved.exists(), f"copies gone after {point}")
        until(lambda: "saved" not in [row.kind for row in manager.store.effects(vm_id)], point)
        manager.remove_pod(manager.vm(vm_id).vm.pod.id)
        assert node.left == [], point
        managers.now.close()
        return points

    points = list(dict.fromkeys(life("")))
    assert {"restoring:intended", "saved:applied", "saved:disk-put-back"} <= set(points)
    assert {"saved:told", "saved:reverted", "restoring:reverted"} <= set(points)
    for point in points:
        life(point)
