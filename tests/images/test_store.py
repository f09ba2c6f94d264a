import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from virtlet.host.files import appear_at, make_private_directory
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout, measure
from virtlet.model.image import RecognizedImage
from virtlet.model.reference import parse_reference

from .conftest import EMULATOR_GID, put, stage
from .disks import raw_disk, write_qcow2

DIGEST = "sha256:" + "a1" * 32


def files(store: ImageStore) -> list[str]:
    """Everything in the images directory, by relative path."""
    root = store.usage().mountpoint
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


class TestPublish:
    def test_an_image_is_found_by_every_kind_of_reference(self, store: ImageStore) -> None:
        image_id = put(store, "example.com/a/b")
        image = store.get(parse_reference("example.com/a/b"))
        assert image is not None
        assert image.id == image_id
        assert image.path.read_bytes() == raw_disk()
        assert (image.format, image.size, image.virtual_size) == ("raw", 65536, 65536)
        assert image.names == ("example.com/a/b:latest",)
        assert image.digests == (f"example.com/a/b@{image_id}",)
        for reference in (image_id, image_id.removeprefix("sha256:"), image.digests[0]):
            assert store.get(parse_reference(reference)) == image
        assert store.list() == (image,)

    def test_what_is_not_there_is_none(self, store: ImageStore) -> None:
        image_id = put(store, "a")
        assert store.get(parse_reference("b")) is None
        assert store.get(parse_reference(DIGEST)) is None
        assert store.get(parse_reference(f"a@{DIGEST}")) is None
        assert store.get(parse_reference(f"b@{image_id}")) is None

    def test_files_are_laid_out_as_the_original_does(self, store: ImageStore) -> None:
        digest = put(store, "example.com/a/b").removeprefix("sha256:")
        assert files(store) == [
            f"data/{digest}",
            f"data/{digest}.json",
            "links/example.com%a%b",
        ]
        link = store.usage().mountpoint / "links" / "example.com%a%b"
        assert link.is_symlink()
        assert link.read_bytes() == raw_disk()

    def test_the_emulator_can_read_images_and_nothing_else(
        self, store: ImageStore, tmp_path: Path
    ) -> None:
        """By the name in its VM's directory: nobody but root has a way into the store."""
        image_id = put(store, "a")
        image = store.get(parse_reference(image_id))
        assert image is not None
        stat = image.path.stat()
        assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (0, 0, 0o444)
        for directory in (image.path.parent, image.path.parent.parent):
            assert directory.stat().st_mode & 0o7777 == 0o700
        tmp_path.chmod(0o711)
        vm = tmp_path / "vm"
        make_private_directory(vm, uid=0, gid=EMULATOR_GID, mode=0o710)
        appear_at(image.path, vm / "image")
        reads = 'cat "$0" && ! test -w "$0" && ! ls "${0%/*}" && ! mv "$0" "${0%/*}/other"'
        for group, way, works in (
            (EMULATOR_GID, "vm/image", True),
            (EMULATOR_GID + 1, "vm/image", False),
            (EMULATOR_GID, str(image.path.relative_to(tmp_path)), False),
        ):
            done = subprocess.run(
                ["sh", "-c", reads, way],
                # It starts there, because pytest's directories on the way are the tester's alone.
                cwd=tmp_path,
                user=group,
                group=group,
                extra_groups=[],
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert (done.returncode == 0) is works, (group, way)

    def test_the_same_content_is_kept_once_under_all_its_names(self, store: ImageStore) -> None:
        assert put(store, "a") == put(store, "b")
        (image,) = store.list()
        assert image.names == ("a:latest", "b:latest")
        assert len([name for name in files(store) if name.startswith("data/")]) == 2

    def test_a_name_moves_to_new_content_and_the_old_goes(self, store: ImageStore) -> None:
        old, new = put(store, "a", "old"), put(store, "a", "new")
        assert [image.id for image in store.list()] == [new]
        assert store.get(parse_reference(old)) is None
        assert not any(old.removeprefix("sha256:") in name for name in files(store))

    def test_a_pull_by_digest_leaves_the_name_alone(self, store: ImageStore) -> None:
        first = put(store, "a", "first")
        second = stage(store, raw_disk("second"))
        pinned = store.publish(second, parse_reference(f"a@{second.digest}"))
        assert (pinned.names, pinned.digests) == ((), (f"a@{pinned.id}",))
        named = store.get(parse_reference("a"))
        assert named is not None
        assert named.id == first
        assert store.get(parse_reference(f"a@{pinned.id}")) == pinned

    def test_an_image_is_known_by_the_digest_that_its_source_has(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        pinned = parse_reference(f"virtlet.cloud/r.example/a@{DIGEST}")
        for name in (parse_reference("virtlet.cloud/r.example/a:1"), pinned):
            image = store.publish(stage(store, raw_disk()), name, source_digest=DIGEST)
        assert image.id != DIGEST
        assert image.names == ("virtlet.cloud/r.example/a:1",)
        assert image.digests == (f"virtlet.cloud/r.example/a@{DIGEST}",)
        record = image.path.with_suffix(".json")
        for found in (store, open_store()):
            assert found.get(pinned) == image
            assert found.get(parse_reference(f"r.example/a@{image.id}")) is None
            assert found.get(parse_reference(f"r.example/b@{DIGEST}")) is None
        record.unlink()
        remade = open_store().get(pinned)
        assert remade is not None
        assert remade.id == image.id

    def test_another_digest_than_asked_for_is_refused(self, store: ImageStore) -> None:
        staging = stage(store, raw_disk())
        with pytest.raises(FailedPrecondition, match="not sha256:a1a1"):
            store.publish(staging, parse_reference(f"a@{DIGEST}"))
        staging.discard()
        assert files(store) == []

    def test_what_is_no_image_is_refused(self, store: ImageStore) -> None:
        staging = stage(store, b"<html>not found</html>")
        with pytest.raises(InvalidArgument, match="web page"):
            store.publish(staging, parse_reference("a"))
        staging.discard()
        assert files(store) == []

    def test_a_virtual_size_over_the_limit_is_refused(
        self, store: ImageStore, tmp_path: Path
    ) -> None:
        staging = stage(store, write_qcow2(tmp_path / "disk", "17M").read_bytes())
        with pytest.raises(ResourceExhausted, match="17825792 bytes is over the limit of 16777216"):
            store.publish(staging, parse_reference("a"))

    def test_what_a_plugin_recognises_is_kept_with_the_plugins_name(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        def recognize(name: str, file: Path) -> tuple[str, RecognizedImage]:
            assert (name, file.read_bytes()) == ("test", b"MZ")
            return "kernels", RecognizedImage(format="kernel")

        store.publish(stage(store, b"MZ"), parse_reference("a"), recognize=recognize)
        for opened in (store, open_store()):
            image = opened.get(parse_reference("a"))
            assert image is not None
            assert (image.format, image.recognized_by) == ("kernel", "kernels")
            assert (image.size, image.virtual_size) == (2, 0)

    def test_annotations_of_the_fetching_plugin_are_kept(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        image = store.publish(
            stage(store, raw_disk()), parse_reference("a"), "", {"mediaType": "x"}
        )
        assert open_store().annotations(image.id) == {"mediaType": "x"}

    def test_an_image_says_of_itself_what_is_said_where_its_name_leads(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        """Another place may say something else of the same bytes, and changes no pod by it."""
        key = "cloud.virtlet.share-drivers"
        ours, theirs, bare = map(parse_reference, ("host/ours:1", "host/theirs:1", "host/bare:1"))
        image = store.publish(stage(store, raw_disk()), ours, "a", {key: "9p", "mediaType": "x"})
        with store.held(parse_reference(image.id)) as held:
            assert held.annotations == {key: "9p"}
        store.publish(stage(store, raw_disk()), theirs, "b", {key: "virtiofs"})
        store.publish(stage(store, raw_disk()), bare, "c")
        for opened in (store, open_store()):
            for name, said in (
                ("virtlet.cloud/host/ours:1", {key: "9p"}),
                ("host/theirs:1", {key: "virtiofs"}),
                ("host/bare:1", {}),
                ("host/nobody:1", {}),
                ("no name", {}),
                ("", {}),
            ):
                with opened.held(parse_reference(image.id), name) as held:
                    assert held.annotations == said

    def test_a_reader_never_sees_a_half_published_name(self, store: ImageStore) -> None:
        put(store, "a", "0")
        stop = threading.Event()
        torn: list[str] = []

        def read() -> None:
            while not stop.is_set():
                image = store.get(parse_reference("a"))
                if image is None or image.names != ("a:latest",) or len(store.list()) != 1:
                    torn.append(str(image))

        reader = threading.Thread(target=read)
        reader.start()
        for turn in range(15):
            put(store, "a", str(turn % 2))
        stop.set()
        reader.join()
        assert torn == []


class TestBeginningOfAnId:
    def test_it_stands_for_the_id(self, store: ImageStore) -> None:
        image_id = put(store, "x")
        bare = image_id.removeprefix("sha256:")
        image = store.get(parse_reference(image_id))
        for short in (bare[:13], bare[:1], image_id[:20], bare):
            assert store.find(parse_reference(short)) == image
        other = "0" if bare[0] != "0" else "1"
        for text in ("sha256", bare[:13].upper(), other, f"{bare[:13]}:1"):
            assert store.find(parse_reference(text)) is None

    def test_a_name_is_not_taken_for_it(self, store: ImageStore) -> None:
        first = put(store, "x", "x")
        name = first.removeprefix("sha256:")[:4]
        second = put(store, name, "y")
        assert second != first
        assert store.find(parse_reference(name)) == store.get(parse_reference(second))
        assert store.find(parse_reference(first[:12])) == store.get(parse_reference(first))

    def test_that_of_several_ids_is_told_with_them(self, store: ImageStore) -> None:
        found: dict[str, str] = {}
        for number in range(17):
            image_id = put(store, f"n{number}", str(number))
            start = image_id.removeprefix("sha256:")[0]
            if start in found:
                break
            found[start] = image_id
        with pytest.raises(FailedPrecondition, match="2 images' ids") as caught:
            store.find(parse_reference(start))
        for known in (image_id, found[start]):
            assert known in str(caught.value)


class TestRemove:
    def test_a_name_that_was_never_pulled_removes_nothing(self, store: ImageStore) -> None:
        put(store, "virtlet.cloud/tiny:latest")
        put(store, "other")
        for name in ("tiny:zzz", "virtlet.cloud/tiny:zzz", "other:v1"):
            assert not store.remove(parse_reference(name))
        (image,) = store.list()
        assert image.names == ("other:latest", "virtlet.cloud/tiny:latest")

    def test_an_image_can_be_removed_with_and_without_the_prefix(self, store: ImageStore) -> None:
        put(store, "virtlet.cloud/tiny:v1")
        assert store.remove(parse_reference("tiny:v1"))
        put(store, "tiny")
        assert store.remove(parse_reference("virtlet.cloud/tiny:latest"))
        assert files(store) == []

    def test_it_takes_all_names_and_the_file(self, store: ImageStore) -> None:
        put(store, "a")
        put(store, "b")
        assert store.remove(parse_reference("a"))
        assert store.list() == ()
        assert files(store) == []

    def test_it_may_be_repeated(self, store: ImageStore) -> None:
        image_id = put(store, "a")
        assert store.remove(parse_reference(image_id))
        assert not store.remove(parse_reference(image_id))
        assert not store.remove(parse_reference("a"))

    def test_what_a_vm_uses_stays_until_the_vm_is_gone(
        self, store: ImageStore, used: set[str]
    ) -> None:
        image_id = put(store, "a")
        image = store.get(parse_reference("a"))
        assert image is not None
        used.add(image_id)
        assert store.remove(parse_reference("a"))
        assert store.list() == ()
        assert store.get(parse_reference(image_id)) is None
        store.sweep()
        assert image.path.exists()
        used.clear()
        store.sweep()
        assert files(store) == []

    def test_an_image_in_use_comes_back_with_its_name(
        self, store: ImageStore, used: set[str]
    ) -> None:
        image_id = put(store, "a")
        used.add(image_id)
        store.remove(parse_reference("a"))
        assert put(store, "a") == image_id
        assert [image.id for image in store.list()] == [image_id]

    def test_a_held_image_stays(self, store: ImageStore, used: set[str]) -> None:
        image_id = put(store, "a")
        with store.held(parse_reference("a")) as image, store.held(parse_reference(image_id)):
            store.remove(parse_reference("a"))
            assert image.path.exists()
            used.add(image_id)
        store.sweep()
        assert image.path.exists()
        used.clear()
        store.sweep()
        assert not image.path.exists()

    def test_an_image_can_be_held_only_while_it_is_there(self, store: ImageStore) -> None:
        with pytest.raises(NotFound, match="pull it first"), store.held(parse_reference("a")):
            pass

    def test_an_image_removed_while_it_was_found_unchanged_is_pulled_again(
        self, store: ImageStore
    ) -> None:
        store.publish(stage(store, raw_disk(), '"v1"'), parse_reference("a"), "source")
        staging = store.new_staging("a", store.known(parse_reference("a"), "source"))
        staging.finish(staging.size)
        store.remove(parse_reference("a"))
        with pytest.raises(Unavailable, match="pull again"):
            store.publish(staging, parse_reference("a"), "source")


class TestKnown:
    def test_a_source_is_known_with_its_validator(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        image = store.publish(stage(store, raw_disk(), '"v1"'), parse_reference("a"), "source")
        for opened in (store, open_store()):
            known = opened.known(parse_reference("a"), "source")
            assert known is not None
            assert (known.digest, known.size, known.validator) == (image.id, image.size, '"v1"')

    def test_another_source_is_not_known(self, store: ImageStore) -> None:
        store.publish(stage(store, raw_disk(), '"v1"'), parse_reference("a"), "source")
        assert store.known(parse_reference("a"), "other") is None

    def test_a_source_is_known_by_another_name_too_if_not_by_this_one(
        self, store: ImageStore
    ) -> None:
        first = store.publish(stage(store, raw_disk("1"), '"v1"'), parse_reference("a"), "source")
        second = store.publish(stage(store, raw_disk("2"), '"v2"'), parse_reference("b"), "source")
        found = [store.known(parse_reference(name), "source") for name in ("a", "b", "c")]
        assert [known and known.digest for known in found] == [first.id, second.id, second.id]

    def test_what_cannot_be_compared_is_not_known(self, store: ImageStore) -> None:
        store.publish(stage(store, raw_disk()), parse_reference("a"), "source")
        assert store.known(parse_reference("a"), "source") is None


class TestRestart:
    def test_everything_is_there_again(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        put(store, "a", "1")
        put(store, "b", "1")
        put(store, "c/d:e", "2")
        again = open_store()
        again.collect()
        assert again.list() == store.list()

    def test_addresses_that_differ_by_what_looks_like_a_tag_are_two(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        names = ("http://h/x", "http://h/x:latest")
        ids = [put(store, name, name) for name in names]
        again = open_store()
        again.collect()
        found = [again.get(parse_reference(name)) for name in names]
        assert [image and image.id for image in found] == ids

    @pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"version": 99}', b'"x"'])
    def test_a_lost_or_damaged_record_is_made_again(
        self, store: ImageStore, open_store: Callable[[], ImageStore], damage: bytes | None
    ) -> None:
        image_id = put(store, "a")
        before = store.get(parse_reference("a"))
        assert before is not None
        record = before.path.with_suffix(".json")
        record.unlink() if damage is None else record.write_bytes(damage)
        after = open_store().get(parse_reference("a"))
        assert after is not None
        assert (after.id, after.format, after.virtual_size) == (image_id, "raw", 65536)
        assert record.exists()

    def test_a_record_from_before_plugins_recognised_images_is_taken_as_it_is(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        image_id = put(store, "a")
        record = store.usage().mountpoint / "data" / f"{image_id.removeprefix('sha256:')}.json"
        document = json.loads(record.read_bytes())
        del document["recognized_by"]
        record.write_text(json.dumps(document))
        before = record.read_bytes()
        image = open_store().get(parse_reference("a"))
        assert image is not None
        assert (image.format, image.recognized_by) == ("raw", "")
        assert record.read_bytes() == before

    def test_a_lost_record_that_cannot_be_made_again_is_told_and_the_others_are_there(
        self,
        store: ImageStore,
        used: set[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        open_store: Callable[[], ImageStore],
    ) -> None:
        used.add(put(store, "a", "1"))
        other = put(store, "b", "2")
        image = store.get(parse_reference("a"))
        assert image is not None
        image.path.with_suffix(".json").unlink()
        with monkeypatch.context() as without_qemu_img:
            without_qemu_img.setenv("PATH", str(tmp_path))
            again = open_store()
        again.collect()
        assert [known.id for known in again.list()] == [other]
        assert image.path.exists()
        [line] = [r for r in caplog.records if r.getMessage() == "image left out"]
        assert "qemu-img is not installed" in line.problem  # type: ignore[attr-defined]

    def test_a_start_goes_on_without_a_plugin_that_hangs_over_a_lost_record(
        self, store: ImageStore, used: set[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        used.add(put(store, "a"))
        image = store.get(parse_reference("a"))
        assert image is not None
        image.path.with_suffix(".json").unlink()
        go_on = threading.Event()

        def hang(name: str, file: Path) -> tuple[str, RecognizedImage]:
            go_on.wait(60)
            raise NotFound("too late")

        layout = Layout(store.usage().mountpoint, EMULATOR_GID)
        again = ImageStore(layout, in_use=lambda: used, recognize=hang, look_patience=0.1)
        go_on.set()
        assert again.list() == ()
        assert image.path.exists()
        [line] = [r for r in caplog.records if r.getMessage() == "image left out"]
        assert line.problem == "nobody has said what it is within 0.1 s"  # type: ignore[attr-defined]

    def test_a_store_of_the_original_is_taken_over(
        self, tmp_path: Path, open_store: Callable[[], ImageStore]
    ) -> None:
        made = write_qcow2(tmp_path / "disk")
        data, links = tmp_path / "images" / "data", tmp_path / "images" / "links"
        data.mkdir(parents=True)
        links.mkdir()
        made.rename(data / ("a1" * 32))
        (links / "example.com%x").symlink_to(f"../data/{'a1' * 32}")
        store = open_store()
        store.collect()
        image = store.get(parse_reference("example.com/x"))
        assert image is not None
        assert image.format == "qcow2"
        assert image.path.stat().st_mode & 0o777 == 0o444

    def test_a_name_from_before_tags_were_kept_is_found_by_every_tag(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        image_id = put(store, "tiny")
        record = store.usage().mountpoint / "data" / f"{image_id.removeprefix('sha256:')}.json"
        document = json.loads(record.read_bytes())
        document["origins"] = {"tiny": {"source": "s", "validator": '"v1"'}}
        record.write_text(json.dumps(document))
        again = open_store()
        again.collect()
        (image,) = again.list()
        assert image.names == ("tiny:latest",)
        assert again.known(parse_reference("tiny:latest"), "s") is not None
        assert again.handler(parse_reference("tiny")) is None
        for name in ("tiny", "virtlet.cloud/tiny:latest", "tiny:v1", f"tiny:v1@{image_id}"):
            assert again.get(parse_reference(name)) == image
        assert not again.remove(parse_reference("tiny:v1"))
        put(again, "virtlet.cloud/tiny")
        assert again.get(parse_reference("tiny:v1")) is None
        (image,) = again.list()
        assert image.names == ("virtlet.cloud/tiny:latest",)
        assert again.remove(parse_reference("tiny"))
        assert files(again) == []

    def test_a_link_with_the_default_tag_written_out_is_taken_over(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        image_id = put(store, "x")
        links = store.usage().mountpoint / "links"
        (links / "x").rename(links / "x:latest")
        again = open_store()
        assert [image.id for image in again.list()] == [image_id]
        assert again.remove(parse_reference("x"))
        assert files(again) == []

    def test_parts_and_unreferenced_files_go(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        put(store, "a")
        root = store.usage().mountpoint
        kept = files(store)
        (root / "part_123").write_bytes(b"x")
        (root / "data" / ("a1" * 32)).write_bytes(raw_disk("unreferenced"))
        (root / "data" / ("b2" * 32)).write_bytes(b"damaged")
        (root / "data" / f"{'c3' * 32}.json").write_bytes(b"{}")
        (root / "data" / f".{'d4' * 32}.json.new").write_bytes(b"{}")
        (root / "links" / "gone").symlink_to(f"../data/{'e5' * 32}")
        open_store().collect()
        assert files(store) == kept

    def test_what_a_vm_uses_stays_even_without_name_and_record(
        self, store: ImageStore, used: set[str], open_store: Callable[[], ImageStore]
    ) -> None:
        image_id = put(store, "a")
        image = store.get(parse_reference("a"))
        assert image is not None
        used.add(image_id)
        store.remove(parse_reference("a"))
        again = open_store()
        again.collect()
        assert image.path.exists()
        assert again.list() == ()
        used.clear()
        again.sweep()
        assert files(again) == []

    def test_foreign_files_are_left_alone(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        root = store.usage().mountpoint
        foreign = [root / "NOTES", root / "data" / "notes.json", root / "links" / "README"]
        for path in foreign:
            path.write_bytes(b"x")
        (root / "links" / "elsewhere").symlink_to("/etc/hostname")
        open_store().collect()
        assert all(path.exists() for path in foreign)
        assert (root / "links" / "elsewhere").is_symlink()

    def test_a_file_of_another_size_than_recorded_is_looked_at_again(
        self, store: ImageStore, open_store: Callable[[], ImageStore]
    ) -> None:
        put(store, "a")
        image = store.get(parse_reference("a"))
        assert image is not None
        with image.path.open("r+b") as file:
            file.truncate(image.size - 1)
        again = open_store()
        again.collect()
        assert again.get(parse_reference("a")) is None
        assert files(again) == []


class TestUsage:
    def test_it_counts_what_images_and_parts_take(self, store: ImageStore) -> None:
        before = store.usage()
        assert before.inodes_used == 3
        put(store, "a")
        staging = stage(store, raw_disk("b"))
        during = store.usage()
        assert during.used_bytes >= before.used_bytes + 2 * 65536
        assert during.inodes_used == before.inodes_used + 4
        staging.discard()
        assert store.usage().used_bytes < during.used_bytes
        assert during.mountpoint.is_dir()
        assert during.timestamp > before.timestamp


def test_what_is_mounted_in_a_directory_is_not_of_it(tmp_path: Path) -> None:
    """As a pod's shared volume is, in its VM's directory."""
    volume, place = tmp_path / "volume", tmp_path / "volumes/vm/volume-0"
    volume.mkdir()
    place.mkdir(parents=True)
    (volume / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "volumes/vm/disk").write_bytes(b"x" * 10_000)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "volumes")
    before = measure(linked)
    subprocess.run(["mount", "--bind", volume, place], check=True)
    try:
        after = measure(linked)
    finally:
        subprocess.run(["umount", place], check=True)
    assert 10_000 <= after.used_bytes <= before.used_bytes < 100_000
    assert after.inodes_used == before.inodes_used - 1
