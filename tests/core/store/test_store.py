"""What is stored survives, and what cannot be read is refused."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes import models
from virtlet.core.store.database import Database
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord, decode
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.network import Network, Nic
from virtlet.model.resources import Resources
from virtlet.model.vm import Mount, VmExit


def _pod_record(tmp_path: Path) -> PodRecord:
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("10.0.0.2/24",))
    network = Network(netns=tmp_path / "netns", nics=(nic,), details="{}")
    return PodRecord(models.pod(tmp_path, labels={"a": "b"}), PodPhase.READY, network)


def test_pods_and_vms_are_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "virtlet.db"
    store = Store(path)
    vm = models.vm(tmp_path, mounts=(Mount(guest_path="/a", host_path="/b"),), envs=(("K", "V"),))
    pod = _pod_record(tmp_path)
    assert pod.network is not None
    vm = evolve(vm, pod=pod.pod, network=pod.network)
    store.put_pod(pod)
    store.put_vm(
        VmRecord(
            vm,
            VmPhase.EXITED,
            exit=VmExit(exit_code=0, reason="Completed", message="", finished_at=7),
        )
    )
    again = Store(path)
    assert again.pods == store.pods
    assert again.vms == store.vms
    assert again.instance == store.instance


def test_a_vm_on_whose_resize_a_manager_died_is_read_back_and_one_of_before_that_too(
    tmp_path: Path,
) -> None:
    """A record of an earlier release says nothing of resizes."""
    path = tmp_path / "virtlet.db"
    pod = PodRecord(models.pod(tmp_path), PodPhase.READY, Network(netns=None))
    record = VmRecord(models.vm(tmp_path), VmPhase.RUNNING, resizing=Resources(cpu_quota=7))
    store = Store(path)
    store.put_pod(pod)
    store.put_vm(record)
    store.close()
    assert Store(path).vms == {record.vm.id: record}
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vms SET record = json_remove(record, '$.resizing')")
    assert Store(path).vms == {record.vm.id: evolve(record, resizing=None)}


@pytest.mark.parametrize(
    "volume",
    [
        Disk(path=Path("/a"), serial="x"),
        Share(host_path=Path("/a"), guest_path="/b", tag="tag"),
        GuestFiles(host_path=Path("/a"), guest_path="/b", mode=0o600),
        Unneeded(guest_path="/b", reason="why"),
    ],
)
def test_every_kind_of_volume_is_a_record(tmp_path: Path, volume: Volume) -> None:
    store = Store(tmp_path / "virtlet.db")
    seq = store.intend("owner", "disk", "plugin", "volume-0")
    assert store.effects("owner")[0].record is None
    store.record(seq, volume, Volume)
    text = store.effects("owner")[0].record
    assert text is not None
    assert decode(text, Volume) == volume  # type: ignore[arg-type]


def test_a_snapshot_does_not_change_under_its_reader(tmp_path: Path) -> None:
    store = Store(tmp_path / "virtlet.db")
    before = store.pods
    store.put_pod(_pod_record(tmp_path))
    assert len(before) == 0
    assert len(store.pods) == 1


def test_a_change_of_a_vm_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "virtlet.db")
    assert store.change_vm("nobody", lambda r: evolve(r, stopping=True)) is None


def test_a_pod_or_vm_that_is_still_made_is_not_known(tmp_path: Path) -> None:
    store = Store(tmp_path / "virtlet.db")
    pod, vm = _pod_record(tmp_path), VmRecord(models.vm(tmp_path), VmPhase.CREATING)
    store.put_pod(evolve(pod, phase=PodPhase.CREATING))
    store.put_vm(vm)
    with pytest.raises(NotFound, match="there is no pod sandbox a{32}"):
        store.known_pod(pod.pod.id)
    with pytest.raises(NotFound, match="there is no container b{32}"):
        store.known_vm(vm.vm.id)
    store.put_pod(pod)
    assert store.known_pod(pod.pod.id) == pod
    with pytest.raises(NotFound, match="there is no container nobody"):
        store.known_vm("nobody")


def test_a_vm_may_use_what_was_asked_for_until_it_is_resized(tmp_path: Path) -> None:
    asked, resized = Resources(cpu_quota=1), Resources(cpu_quota=2)
    record = VmRecord(models.vm(tmp_path, resources=asked), VmPhase.CREATED)
    assert record.resources == asked
    assert evolve(record, resources=resized).resources == resized


def test_the_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    Store(tmp_path / "virtlet.db")
    assert os.stat(tmp_path / "virtlet.db").st_mode & 0o077 == 0


@pytest.mark.parametrize("change", ["PRAGMA user_version = 99", "UPDATE pods SET version = 99"])
def test_a_database_of_a_newer_release_is_refused_with_the_remedy(
    tmp_path: Path, change: str
) -> None:
    """Also where only a row is: one that was copied out of such a database."""
    path = tmp_path / "virtlet.db"
    store = Store(path)
    store.put_pod(_pod_record(tmp_path))
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    with pytest.raises(
        FailedPrecondition,
        match="schema version 99.*newer Virtlet.*install the newer release again, or, if the VMs",
    ):
        Store(path)


def test_a_vm_is_stored_with_its_pod_and_goes_before_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "virtlet.db")
    pod, vm = _pod_record(tmp_path), VmRecord(models.vm(tmp_path), VmPhase.CREATED)
    with pytest.raises(Unavailable, match="FOREIGN KEY"):
        store.put_vm(vm)
    assert not store.vms
    store.put_pod(pod)
    store.put_vm(vm)
    with pytest.raises(Unavailable, match="FOREIGN KEY"):
        store.delete_pod(pod.pod.id)
    assert list(store.pods) == [pod.pod.id]
    store.delete_vm(vm.vm.id)
    store.delete_pod(pod.pod.id)
    assert not store.pods


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "virtlet.db"
    path.write_text("not a database, " * 100)
    with pytest.raises(FailedPrecondition, match="cannot be used as the database"):
        Store(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    target = tmp_path / "disk"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def test_a_full_disk_is_told_changes_nothing_and_writing_goes_on_once_there_is_space(
    small_disk: Path, tmp_path: Path
) -> None:
    store = Store(small_disk / "virtlet.db")
    store.put_pod(_pod_record(tmp_path))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    before = store.pods
    other = evolve(_pod_record(tmp_path), phase=PodPhase.NOT_READY)
    with pytest.raises(ResourceExhausted, match=r"virtlet\.db: the disk is full"):
        for _ in range(100):
            store.put_pod(other)
            before = store.pods
    assert store.pods == before
    filler.unlink()
    store.put_pod(_pod_record(tmp_path))
    assert store.effects("nobody") == []
    store.close()


def test_a_commit_that_fails_does_not_keep_later_ones_from_succeeding(tmp_path: Path) -> None:
    database = Database(tmp_path / "virtlet.db")
    with database.transaction() as tx:
        tx.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        tx.execute(
            "CREATE TABLE children (id INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)"
        )
    # Takes effect outside transactions only, so by a statement between two of them.
    with pytest.raises(Unavailable), database.transaction() as tx:
        tx.execute("ROLLBACK")
        tx.execute("PRAGMA foreign_keys = ON")
        tx.execute("BEGIN")
        tx.execute("INSERT INTO children VALUES (1)")
    with database.transaction() as tx:
        assert tx.execute("SELECT count(*) FROM children").fetchone() == (0,)
    database.close()


def test_a_path_that_cannot_hold_a_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="--database-path"):
        Store(tmp_path / "file" / "virtlet.db")
