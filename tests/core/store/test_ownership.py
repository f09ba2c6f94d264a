"""A data directory and its database belong together; start-up refuses any other pair."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define, evolve

from tests.fakes import models
from virtlet.core.paths import Paths
from virtlet.core.store.ownership import open_store
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition


@define
class Place:
    """A data directory as the manager makes it, with a database."""

    data_dir: Path

    def __attrs_post_init__(self) -> None:
        for name in ("pods", "volumes", "run/vm"):
            (self.data_dir / name).mkdir(parents=True)

    @property
    def database(self) -> Path:
        return self.data_dir / "virtlet.db"

    @property
    def file(self) -> Path:
        return self.data_dir / "instance"

    def open(self, database: Path | None = None) -> str:
        """Open and close the database; returns its instance."""
        store = open_store(database or self.database, Paths(self.data_dir))
        store.close()
        return store.instance

    def add_vm(self) -> None:
        """A pod with a VM, in the database and on disk."""
        vm = models.vm(self.data_dir)
        pod = evolve(vm.pod, directory=self.data_dir / "pods" / vm.pod.id)
        vm = evolve(vm, pod=pod, directory=self.data_dir / "volumes" / vm.id)
        store = open_store(self.database, Paths(self.data_dir))
        store.put_pod(PodRecord(pod, PodPhase.READY, vm.network))
        store.put_vm(VmRecord(vm, VmPhase.RUNNING))
        store.close()
        pod.directory.mkdir()
        vm.directory.mkdir()
        (vm.directory / "root.qcow2").write_text("a disk")
        (self.data_dir / "run" / "vm" / vm.id[:12]).mkdir()

    def content(self) -> set[Path]:
        """All there is."""
        return set(self.data_dir.rglob("*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data")


def test_the_first_start_ties_them_and_every_later_one_finds_the_same(place: Place) -> None:
    instance = place.open()
    assert place.file.read_text() == f"{instance}\n"
    place.add_vm()
    assert place.open() == instance


def test_another_database_beside_the_directories_of_vms_is_refused(
    place: Place, tmp_path: Path
) -> None:
    own = place.open()
    place.add_vm()
    other = tmp_path / "other.db"
    Store(other).close()
    theirs = Store(other).instance
    before = place.content()
    with pytest.raises(FailedPrecondition) as caught:
        place.open(other)
    for part in (own, theirs, str(other), str(place.file), "--database-path", "move"):
        assert part in str(caught.value)
    assert place.content() == before
    assert place.open() == own


def test_a_lost_database_is_refused_makes_no_new_one_and_can_be_put_back(
    place: Place, tmp_path: Path
) -> None:
    own = place.open()
    place.add_vm()
    place.database.rename(tmp_path / "backup")
    with pytest.raises(FailedPrecondition, match=f"belongs to instance {own}.*does not exist"):
        place.open()
    assert not place.database.exists()
    (tmp_path / "backup").rename(place.database)
    assert place.open() == own


def test_an_empty_directory_becomes_that_of_another_database(place: Place, tmp_path: Path) -> None:
    own = place.open()
    other = place.open(tmp_path / "other.db")
    assert other != own
    assert place.file.read_text().strip() == other


def test_a_first_start_cut_short_between_database_and_file_is_made_good(place: Place) -> None:
    store = Store(place.database)
    store.close()
    assert place.open() == store.instance
    assert place.file.read_text().strip() == store.instance


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_a_directory_without_a_word_of_its_owner_is_that_of_a_database_that_knows_its_pods(
    place: Place, damage: Callable[[Path], object]
) -> None:
    place.add_vm()
    own = place.open()
    damage(place.file)
    assert place.open() == own
    assert place.file.read_text().strip() == own


def test_a_directory_without_a_word_of_its_owner_is_not_that_of_a_database_that_knows_nothing_of_it(
    place: Place, tmp_path: Path
) -> None:
    place.add_vm()
    place.file.unlink()
    Store(tmp_path / "other.db").close()
    with pytest.raises(FailedPrecondition, match="pods or VMs of another instance"):
        place.open(tmp_path / "other.db")
    with pytest.raises(FailedPrecondition, match="does not exist"):
        place.open(tmp_path / "new.db")
    assert not place.file.exists()


def test_a_database_put_into_a_fresh_directory_at_the_same_path_is_taken_up(
    place: Place, tmp_path: Path
) -> None:
    own = place.open()
    place.add_vm()
    place.data_dir.rename(tmp_path / "old")
    fresh = Place(place.data_dir)
    shutil.copy(tmp_path / "old" / "virtlet.db", fresh.database)
    assert fresh.open() == own


def test_a_database_with_pods_in_one_data_directory_is_refused_with_another(
    place: Place, tmp_path: Path
) -> None:
    place.add_vm()
    other = Place(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match=f"use --data-dir {place.data_dir}, or another"):
        other.open(place.database)
    assert not other.file.exists()


def test_a_data_directory_reached_by_a_link_is_the_same(place: Place, tmp_path: Path) -> None:
    place.add_vm()
    (tmp_path / "link").symlink_to(place.data_dir)
    store = open_store(place.database, Paths(tmp_path / "link"))
    store.close()
    assert len(store.vms) == 1


def test_a_file_that_cannot_be_read_or_written_is_named(place: Place) -> None:
    place.file.mkdir()
    with pytest.raises(FailedPrecondition, match=f"cannot read {place.file}"):
        place.open()
    place.file.rmdir()
    (place.data_dir / ".instance.new").mkdir()
    with pytest.raises(FailedPrecondition, match=f"cannot write {place.file}"):
        place.open()
