"""A VM's checkpoint is one file or none, whatever fails, and leaves nothing in its emulator."""

import itertools
import json
import os
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.core.lifecycle.conftest import Managers
from tests.fakes.hypervisor import EMPTY_DISK
from tests.fakes.manager import Killed, Manager, Node
from tests.polling import until
from virtlet.core.checkpoint_encryption import decrypt, nameless_file
from virtlet.core.lifecycle.checkpoints import checkpoint_pod, checkpoint_vm
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from virtlet.model.disk import Disk, Share
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import VmConfig


def _flavor(vm: VmConfig) -> Flavor:
    return Flavor(memory=1 << 20, guest_agent=False)


def started(managers: Managers, *, mounts: tuple[str, ...] = ()) -> str:
    """A VM that runs, with an overlay on its image."""
    manager = managers.now
    manager.node.flavor = _flavor
    vm_id = manager.create(manager.run(), mounts=mounts)
    manager.start(vm_id)
    change(manager, vm_id, with_overlay)
    return vm_id


def change(manager: Manager, vm_id: str, how: Callable[[VmRecord], VmRecord]) -> None:
    manager.store.change_vm(vm_id, how)


def with_overlay(record: VmRecord) -> VmRecord:
    machine = record.machine
    assert machine is not None
    root = evolve(machine.root, backing=record.vm.image.path)
    return evolve(record, machine=evolve(machine, root=root))


def take(manager: Manager, vm_id: str, path: Path, **more: object) -> None:
    checkpoint_vm(manager.context, vm_id, path, **more)  # type: ignore[arg-type]


def kinds(manager: Manager, vm_id: str) -> list[str]:
    return [row.kind for row in manager.store.effects(vm_id)]


def test_it_is_an_archive_with_the_manifest_first(managers: Managers, tmp_path: Path) -> None:
    vm_id = started(managers)
    path = tmp_path / "checkpoint.tar"
    take(managers.now, vm_id, path)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["manifest.json", "memory", "disk.qcow2"]
        manifest, memory, disk = (archive.extractfile(name) for name in archive.getnames())
        assert manifest is not None
        assert memory is not None
        assert disk is not None
        told = json.loads(manifest.read())
        assert memory.read(told["memory"]["size"]) == b"memory"
        assert not memory.read().strip(b"\0")
        assert disk.read() == EMPTY_DISK
    record = managers.now.vm(vm_id)
    assert told["format"] == 1
    assert told["image"]["id"] == record.vm.image.id
    assert told["pod"] == {"namespace": "default", "name": "web", "uid": "uid-web"}
    assert told["container"] == "guest"
    assert told["machine"]["flavor"]["memory"] == 1 << 20
    assert told["machine"]["hypervisor"] == "fake"
    assert managers.node.hypervisor.unsettled == set()
    assert "checkpoint" not in kinds(managers.now, vm_id)
    assert managers.node.hypervisor.running == {vm_id}


def test_a_crash_at_any_place_leaves_a_guest_that_runs_and_no_half_file(tmp_path: Path) -> None:
    """A file is there only if it is whole, and the next one can be taken."""
    numbers = itertools.count()

    def life(point: str) -> list[str]:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        managers = Managers(Node(root))
        vm_id = started(managers)
        path, passed = root / "checkpoint", len(managers.now.points)
        if point:
            managers.now.at[point] = Killed()
            with pytest.raises(Killed):
                take(managers.now, vm_id, path)
            assert not path.exists(), point
        else:
            take(managers.now, vm_id, path)
        points = managers.now.points[passed:]
        managers.restart()
        until(lambda: "checkpoint" not in kinds(managers.now, vm_id), "settled")
        assert managers.node.hypervisor.unsettled == set(), point
        assert managers.now.vm(vm_id).phase is VmPhase.RUNNING
        take(managers.now, vm_id, root / "next")
        assert (root / "next").exists()
        managers.now.stop(vm_id)
        assert managers.node.hypervisor.running == set()
        managers.now.close()
        return points

    points = list(dict.fromkeys(life("")))
    assert {"checkpoint:intended", "checkpoint:applied", "checkpoint:reverted"} <= set(points)
    assert "checkpoint:settled" in points
    for point in points:
        life(point)


@pytest.mark.parametrize("deed", ["checkpoint", "checkpointed"])
def test_one_that_fails_is_undone_and_named(managers: Managers, tmp_path: Path, deed: str) -> None:
    vm_id = started(managers)
    managers.node.faults.once[deed] = FailedPrecondition("QEMU's migrate: no")
    with pytest.raises(FailedPrecondition, match="web/guest.* was not checkpointed: QEMU's migr"):
        take(managers.now, vm_id, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    assert managers.node.hypervisor.unsettled == set()
    assert "checkpoint" not in kinds(managers.now, vm_id)


def test_an_emulator_that_cannot_be_settled_is_tried_until_it_is(
    managers: Managers, tmp_path: Path
) -> None:
    """Its guest may stand still."""
    vm_id = started(managers)
    managers.node.faults.once["settle"] = Unavailable("libvirt is away")
    managers.node.faults.once["checkpointed"] = Unavailable("libvirt is away")
    with pytest.raises(Unavailable):
        take(managers.now, vm_id, tmp_path / "checkpoint")
    until(lambda: not managers.node.hypervisor.unsettled, "settled")
    until(lambda: "checkpoint" not in kinds(managers.now, vm_id), "struck out")


def test_a_vm_that_ended_meanwhile_has_nothing_to_settle(
    managers: Managers, tmp_path: Path
) -> None:
    vm_id = started(managers)
    managers.node.faults.once["settle"] = Unavailable("libvirt is away")
    managers.now.at["checkpoint:before-revert"] = Killed()
    with pytest.raises(Killed):
        take(managers.now, vm_id, tmp_path / "checkpoint")
    managers.node.hypervisor.domains[vm_id] = DomainState.STOPPED
    managers.restart()
    managers.now.remove_pod(managers.now.vm(vm_id).vm.pod.id)
    assert not managers.now.store.vms
    assert kinds(managers.now, vm_id) == []


def _is(**what: Any) -> Callable[[VmRecord], VmRecord]:
    return lambda record: evolve(record, **what)


def _machine(**what: Any) -> Callable[[VmRecord], VmRecord]:
    return lambda record: evolve(record, machine=evolve(record.machine, **what))  # type: ignore[misc]


def _flavored(**what: Any) -> Callable[[VmRecord], VmRecord]:
    flavor = evolve(Flavor(memory=1 << 20), **what)
    return _machine(flavor=flavor)


SHARE = Share(host_path=Path("/srv"), guest_path="/data", tag="t", readonly=False)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (_is(stopping=True), "it is being stopped"),
        (_is(paused=True), "it stands still"),
        (_is(phase=VmPhase.CREATED), "it does not run, but is created"),
        (_is(phase=VmPhase.EXITED), "it does not run, but is exited"),
        (_machine(volumes=(SHARE,)), r"shared directories \(/data\)"),
        (_machine(volumes=(Disk(path=Path("/dev/x"), guest_path="/dev/x"),)), r"\(/dev/x\)"),
        (_machine(root=Disk(path=Path("/dev/x"))), "no overlay of its image"),
        (_flavored(tpm=True), "TPM"),
        (_flavored(vsock=True), "vsock"),
        (_flavored(firmware="uefi"), "firmware uefi"),
    ],
)
def test_what_cannot_be_checkpointed_is_refused_by_name(
    managers: Managers, tmp_path: Path, how: Callable[[VmRecord], VmRecord], why: str
) -> None:
    vm_id = started(managers)
    before = managers.now.vm(vm_id)
    change(managers.now, vm_id, how)
    with pytest.raises(FailedPrecondition, match=why):
        take(managers.now, vm_id, tmp_path / "checkpoint")
    change(managers.now, vm_id, lambda record: before)
    assert "checkpoint" not in managers.node.faults.passed
    assert not (tmp_path / "checkpoint").exists()


def test_a_path_that_is_none_or_taken_is_refused_before_the_guest_is_touched(
    managers: Managers, tmp_path: Path
) -> None:
    vm_id = started(managers)
    taken, link = tmp_path / "taken", tmp_path / "link"
    taken.write_text("somebody's")
    link.symlink_to(tmp_path / "elsewhere")
    for path in (taken, link):
        with pytest.raises(AlreadyExists, match=path.name):
            take(managers.now, vm_id, path)
    for path in (Path("relative"), Path("/"), tmp_path / ".." / "x"):
        with pytest.raises(InvalidArgument, match="not the absolute path"):
            take(managers.now, vm_id, path)
    with pytest.raises(FailedPrecondition, match="No such file or directory"):
        take(managers.now, vm_id, tmp_path / "missing" / "checkpoint")
    assert taken.read_text() == "somebody's"
    assert not (tmp_path / "elsewhere").exists()
    assert "checkpoint" not in managers.node.faults.passed


def test_one_that_may_not_fit_is_refused_before_the_guest_is_touched(
    managers: Managers, tmp_path: Path
) -> None:
    vm_id = started(managers)
    change(managers.now, vm_id, _flavored(memory=1 << 60))
    with pytest.raises(ResourceExhausted, match="are free"):
        take(managers.now, vm_id, tmp_path / "checkpoint")
    assert "checkpoint" not in managers.node.faults.passed


def test_another_one_meanwhile_is_refused_and_a_stop_breaks_it_off(
    managers: Managers, tmp_path: Path
) -> None:
    vm_id = started(managers)
    manager, faults = managers.now, managers.node.faults
    go = faults.stuck["checkpointed"] = threading.Event()
    problems: list[Exception] = []

    def first() -> None:
        try:
            take(manager, vm_id, tmp_path / "first")
        except FailedPrecondition as error:
            problems.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        until(lambda: "checkpointed" in faults.passed, "the first under way")
        with pytest.raises(FailedPrecondition, match="is being checkpointed"):
            take(manager, vm_id, tmp_path / "second")
        stopping = threading.Thread(target=manager.stop, args=(vm_id,))
        stopping.start()
        until(lambda: manager.vm(vm_id).stopping, "asked to stop")
    finally:
        go.set()
        thread.join()
    stopping.join()
    assert "it is being stopped" in str(problems[0])
    assert manager.vm(vm_id).phase is VmPhase.EXITED
    assert not (tmp_path / "first").exists()
    assert managers.node.hypervisor.unsettled == set()


@pytest.mark.parametrize(
    ("how", "why"),
    [({"waits": lambda: False}, "the client went away"), ({"seconds": 0.0}, "longer than 0 sec")],
)
def test_one_that_nobody_waits_for_is_broken_off(
    managers: Managers, tmp_path: Path, how: dict[str, object], why: str
) -> None:
    vm_id = started(managers)
    with pytest.raises(FailedPrecondition, match=why):
        take(managers.now, vm_id, tmp_path / "checkpoint", **how)
    assert not (tmp_path / "checkpoint").exists()
    assert managers.node.hypervisor.unsettled == set()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A directory for a pod's checkpoint."""
    directory = tmp_path / "pod"
    directory.mkdir()
    return directory


def test_a_pod_is_written_to_an_empty_directory_that_is_roots_alone(
    managers: Managers, empty: Path
) -> None:
    vm_id = started(managers)
    pod_id = managers.now.vm(vm_id).vm.pod.id
    checkpoint_pod(managers.now.context, pod_id, [vm_id], empty)
    assert [path.name for path in empty.iterdir()] == ["vm.tar"]
    assert empty.stat().st_mode & 0o777 == 0o700
    assert (empty / "vm.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(empty / "vm.tar") as archive:
        assert archive.getnames() == ["manifest.json", "memory", "disk.qcow2"]
    assert managers.node.hypervisor.running == {vm_id}
    assert managers.node.hypervisor.unsettled == set()


def _key(path: Path) -> Path:
    path.write_bytes(b"k" * 32)
    path.chmod(0o600)
    return path


def test_one_with_a_key_is_encrypted_and_the_plain_one_has_no_name_meanwhile(
    managers: Managers, empty: Path, tmp_path: Path
) -> None:
    vm_id = started(managers)
    record = managers.now.vm(vm_id)
    before = sorted(record.vm.directory.iterdir())
    key = _key(tmp_path / "key")
    go = managers.node.faults.stuck["checkpointed"] = threading.Event()
    work = threading.Thread(
        target=checkpoint_pod,
        args=(managers.now.context, record.vm.pod.id, [vm_id], empty),
        kwargs={"key_file": key},
    )
    work.start()
    try:
        until(lambda: "checkpointed" in managers.node.faults.passed, "it is under way")
        assert list(empty.iterdir()) == []
        assert sorted(record.vm.directory.iterdir()) == before
    finally:
        go.set()
        work.join()
    (sealed,) = empty.iterdir()
    assert sealed.name == "vm.tar.encrypted"
    assert sealed.stat().st_mode & 0o777 == 0o600
    assert b"manifest.json" not in sealed.read_bytes()
    assert managers.node.hypervisor.unsettled == set()
    plain = nameless_file(tmp_path)
    try:
        with sealed.open("rb") as source:
            decrypt(key.read_bytes(), source.fileno(), plain, sealed.name)
        with os.fdopen(os.dup(plain), "rb") as file, tarfile.open(fileobj=file) as archive:
            assert archive.getnames() == ["manifest.json", "memory", "disk.qcow2"]
    finally:
        os.close(plain)


def test_a_key_that_is_none_is_refused_before_the_guest_is_touched(
    managers: Managers, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_id = started(managers)
    pod_id, key = managers.now.vm(vm_id).vm.pod.id, _key(tmp_path / "key")

    def refused(why: str) -> None:
        with pytest.raises(FailedPrecondition, match=why):
            checkpoint_pod(managers.now.context, pod_id, [vm_id], empty, key_file=key)
        assert list(empty.iterdir()) == []
        assert "checkpoint" not in managers.node.faults.passed

    key.chmod(0o644)
    refused("mode 0600")
    key.chmod(0o600)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    refused(r"install virtlet\[encryption\]")


def test_a_directory_that_is_not_empty_or_not_ours_is_refused_and_left_alone(
    managers: Managers, empty: Path, tmp_path: Path
) -> None:
    vm_id = started(managers)
    pod_id = managers.now.vm(vm_id).vm.pod.id
    full, open_, link = tmp_path / "full", tmp_path / "open", tmp_path / "link"
    full.mkdir()
    (full / "somebodys").write_text("kept")
    open_.mkdir()
    open_.chmod(0o777)
    link.symlink_to(empty)
    refused = {
        full: "is not empty",
        open_: "to write to",
        link: "Not a directory|Too many levels",
        tmp_path / "missing": "No such file",
        full / "somebodys": "Not a directory",
        tmp_path / ".." / "x": "not the absolute path",
        Path("relative"): "not the absolute path",
    }
    for path, why in refused.items():
        with pytest.raises((FailedPrecondition, InvalidArgument), match=why):
            checkpoint_pod(managers.now.context, pod_id, [vm_id], path)
    assert list(full.iterdir()) == [full / "somebodys"]
    assert list(empty.iterdir()) == list(open_.iterdir()) == []
    assert "checkpoint" not in managers.node.faults.passed


def test_containers_that_are_not_just_the_pods_running_ones_are_refused(
    managers: Managers, empty: Path
) -> None:
    vm_id = started(managers)
    manager = managers.now
    pod_id, other = manager.vm(vm_id).vm.pod.id, manager.create(manager.run("other"))
    for ids in ([], [vm_id, vm_id], [other], [vm_id, other]):
        with pytest.raises(InvalidArgument, match="contain"):
            checkpoint_pod(manager.context, pod_id, ids, empty)
    other_pod = manager.vm(other).vm.pod.id
    with pytest.raises(FailedPrecondition, match="does not run, but is created"):
        checkpoint_pod(manager.context, other_pod, [other], empty)
    manager.stop_pod(pod_id)
    with pytest.raises(FailedPrecondition, match="is stopped"):
        checkpoint_pod(manager.context, pod_id, [vm_id], empty)
    assert list(empty.iterdir()) == []


def test_what_comes_into_the_directory_meanwhile_is_left_alone_and_nothing_added(
    managers: Managers, empty: Path
) -> None:
    """Nor is anything left of one that fails."""
    vm_id = started(managers)
    pod_id, faults = managers.now.vm(vm_id).vm.pod.id, managers.node.faults
    faults.once["checkpointed"] = FailedPrecondition("QEMU's migrate: no")
    with pytest.raises(FailedPrecondition, match="was not checkpointed"):
        checkpoint_pod(managers.now.context, pod_id, [vm_id], empty)
    assert list(empty.iterdir()) == []

    go = faults.stuck["checkpointed"] = threading.Event()
    problems: list[Exception] = []

    def take_it() -> None:
        try:
            checkpoint_pod(managers.now.context, pod_id, [vm_id], empty)
        except FailedPrecondition as error:
            problems.append(error)

    faults.passed.clear()
    thread = threading.Thread(target=take_it)
    thread.start()
    try:
        until(lambda: "checkpointed" in faults.passed, "it is under way")
        (empty / "vm.tar").write_text("somebody's")
    finally:
        go.set()
        thread.join()
    assert "is not empty" in str(problems[0])
    assert (empty / "vm.tar").read_text() == "somebody's"
    assert managers.node.hypervisor.unsettled == set()
