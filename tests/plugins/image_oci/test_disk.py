"""What of an image is its disk, and images that have none, or are malformed."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.fakes.image_server import ImageServer, Resource
from tests.fakes.oci_images import (
    INDEX,
    MANIFEST,
    TAR,
    OciImage,
    archive,
    artifact,
    container_disk,
    descriptor,
    digest_of,
    image,
    index,
    manifest,
    regular,
)
from tests.images.disks import raw_disk
from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, VirtletError
from virtlet.model.reference import parse_reference
from virtlet.plugins.image_oci import layers
from virtlet.plugins.image_oci.manifests import LARGEST, MOST_LAYERS, node_platform

from .conftest import LIMIT, Node, paths

DISK = raw_disk("oci", 512 * 1024)
OURS = node_platform()


def pulled(node: Node, server: ImageServer, made: OciImage, tag: str = "1") -> bytes:
    """What comes into the store of an image that a server has."""
    made.serve(server, "vms/a", tag)
    return node.pull(f"{node.plain(server)}/vms/a:{tag}").path.read_bytes()


def refused(node: Node, server: ImageServer, made: OciImage, match: str) -> None:
    """Expect an image to be refused, and nothing of it to be left."""
    with pytest.raises(VirtletError, match=match) as error:
        pulled(node, server, made)
    assert str(error.value).startswith(f"image {node.plain(server)}/vms/a: ")
    assert isinstance(error.value, FailedPrecondition | ResourceExhausted | InvalidArgument)
    assert node.files == []


def is_without_disk(node: Node, server: ImageServer, made: OciImage) -> bool:
    """Whether an image is taken for one that VMs mount and do not start from."""
    made.serve(server, "vms/a", "1")
    return node.pull(f"{node.plain(server)}/vms/a:1").format == "squashfs"


class TestContainerDisks:
    @pytest.mark.parametrize("name", ["disk/x.img", "./disk/x.img", "/disk/x.img"])
    def test_the_file_in_disk_is_the_image(
        self, node: Node, server: ImageServer, name: str
    ) -> None:
        made = container_disk(DISK, name)
        made.serve(server, "vms/a", "1")
        registry = node.plain(server)
        found = node.pull(f"virtlet.cloud/{registry}/vms/a:1")
        assert found.path.read_bytes() == DISK
        assert found.names == (f"virtlet.cloud/{registry}/vms/a:1",)
        assert found.digests == (f"virtlet.cloud/{registry}/vms/a@{made.digest}",)
        assert node.store.annotations(found.id)["manifest"] == made.digest

    def test_what_it_says_of_itself_is_kept_also_where_nothing_is_fetched_again(
        self, node: Node, server: ImageServer
    ) -> None:
        layer = archive({"disk/x.img": DISK})
        labels = {
            "cloud.virtlet.share-drivers": "9p",
            "cloud.virtlet.from-label": "yes",
            "cloud.virtlet.long": "x" * 257,
            "cloud.virtlet.number": 1,
            "maintainer": "me",
        }
        config = {
            "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
        }
        made = _with_config(config, layer, annotations={"cloud.virtlet.share-drivers": "virtiofs"})
        made.serve(server, "vms/a", "1")
        name = f"{node.plain(server)}/vms/a:1"
        for _ in range(2):
            found = node.pull(name)
            with node.store.held(parse_reference(found.id), name) as image:
                assert image.annotations == {
                    "cloud.virtlet.share-drivers": "virtiofs",
                    "cloud.virtlet.from-label": "yes",
                }

    @pytest.mark.parametrize(
        "labels", [None, [], {"config": 1}, {f"cloud.virtlet.{n}": "" for n in range(17)}]
    )
    def test_labels_that_are_none_or_too_many_are_left_aside(
        self, node: Node, server: ImageServer, labels: Any
    ) -> None:
        layer = archive({"disk/x.img": DISK})
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
        made = _with_config({"config": {"Labels": labels}, "rootfs": rootfs}, layer)
        made.serve(server, "vms/a", "1")
        found = node.pull(f"{node.plain(server)}/vms/a:1")
        with node.store.held(parse_reference(found.id)) as image:
            assert image.annotations == {}

    @pytest.mark.parametrize("pack", ["gzip", "members", "zstd", "frames", "none"])
    def test_layers_are_unpacked(self, node: Node, server: ImageServer, pack: str) -> None:
        layer = archive({"disk/x.img": DISK})
        half = len(layer) // 2
        zstd = zstandard.ZstdCompressor().compress
        skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00more"
        packed = {
            "gzip": gzip.compress(layer),
            "members": gzip.compress(layer[:half]) + gzip.compress(layer[half:]),
            "zstd": zstd(layer),
            "frames": zstd(layer[:half]) + skipped + zstd(layer[half:]),
            "none": layer,
        }[pack]
        assert pulled(node, server, image([packed], unpacked=[layer])) == DISK

    def test_layers_without_a_disk_are_passed_over(self, node: Node, server: ImageServer) -> None:
        below = archive({"etc/passwd": b"root", "disk.img": raw_disk("other")})
        disk = archive({"usr/x": b"x", "disk/x.img": DISK, "disk/.keep": b"", "disk/a/b": b"b"})
        above = archive([(regular("disk/", type=tarfile.DIRTYPE, mode=0o766), b"")])
        assert pulled(node, server, image([below, disk, above])) == DISK

    def test_a_disk_in_an_upper_layer_hides_what_is_below(
        self, node: Node, server: ImageServer
    ) -> None:
        made = image([archive({"disk/x.img": raw_disk("old")}), archive({"disk/x.img": DISK})])
        assert pulled(node, server, made) == DISK
        lower = next(iter(made.blobs.values()))
        assert f"/v2/vms/a/blobs/{descriptor(lower[0], '')['digest']}" in paths(server)
        below = descriptor(archive({"disk/x.img": raw_disk("old")}), "")["digest"]
        assert f"/v2/vms/a/blobs/{below}" not in paths(server)

    @pytest.mark.parametrize("whiteout", ["disk/.wh.x.img", "disk/.wh..wh..opq", ".wh.disk"])
    def test_a_disk_that_an_upper_layer_takes_away_is_none(
        self, node: Node, server: ImageServer, whiteout: str
    ) -> None:
        made = image([archive({"disk/x.img": DISK}), archive({whiteout: b""})])
        assert is_without_disk(node, server, made)

    def test_an_ordinary_container_image_is_no_disk(self, node: Node, server: ImageServer) -> None:
        made = image([archive({"bin/sh": b"\x7fELF"}), archive({"app": b"x"})])
        assert is_without_disk(node, server, made)

    def test_two_disks_are_refused(self, node: Node, server: ImageServer) -> None:
        made = image([archive({"disk/a.img": DISK, "disk/b.img": DISK})])
        refused(node, server, made, "several files in /disk, '/disk/b.img' among them")

    @pytest.mark.parametrize(
        ("info", "match"),
        [
            (
                regular("disk/x", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
                "'/disk/x' is a link",
            ),
            (regular("disk/x", type=tarfile.LNKTYPE, linkname="etc/shadow"), "'/disk/x' is a link"),
            (regular("disk/x", type=tarfile.BLKTYPE), "is a link or device"),
            (regular("disk", type=tarfile.SYMTYPE, linkname="etc"), "/disk is no directory"),
            (regular("disk/../etc/shadow"), r"an entry with \.\. in its path"),
            (regular("disk/x", pax_headers={"GNU.sparse.major": "1"}), "as a sparse file"),
            (regular("disk/x"), "'/disk/x' is empty"),
            (regular("/disk/x", type=tarfile.SYMTYPE, linkname="../../../etc"), "is a link"),
            (regular("disk/x", type=tarfile.FIFOTYPE), "is a link or device"),
            (
                regular("disk/x", pax_headers={"GNU.sparse.realsize": str(1 << 50)}),
                "as a sparse file",
            ),
        ],
    )
    def test_what_is_no_plain_file_is_refused(
        self, node: Node, server: ImageServer, info: tarfile.TarInfo, match: str
    ) -> None:
        refused(node, server, image([archive([(info, b"")])]), match)

    def test_a_sparse_bomb_is_refused_unread(self, node: Node, server: ImageServer) -> None:
        """A header says that the file has a tebibyte; nothing is made of that size."""
        bomb = regular("disk/x", 1 << 40, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT)
        refused(node, server, image([bomb + bytes(1024)]), "as a sparse file")

    def test_absolute_paths_and_links_lead_nowhere(
        self, node: Node, server: ImageServer, tmp_path: Path
    ) -> None:
        """Of an archive nothing but the disk is written, whatever its entries are called."""
        outside = tmp_path / "outside"
        outside.mkdir()
        entries = [
            (regular("etc", type=tarfile.SYMTYPE, linkname=str(outside)), b""),
            (regular("etc/passwd", 1), b"x"),
            (regular(f"{outside}/passwd", 1), b"x"),
            (regular("hard", type=tarfile.LNKTYPE, linkname="/etc/shadow"), b""),
            (regular("/disk/x.img", len(DISK)), DISK),
        ]
        assert pulled(node, server, image([archive(entries)])) == DISK
        assert list(outside.iterdir()) == []

    def test_a_disk_over_the_limit_is_refused_before_it_is_stored(
        self, node: Node, server: ImageServer
    ) -> None:
        bomb = gzip.compress(archive({"disk/x.img": bytes(LIMIT + 512)}))
        made = image([bomb], unpacked=[gzip.decompress(bomb)])
        refused(node, server, made, f"larger than the limit of {LIMIT} bytes")

    def test_what_is_beside_the_disk_is_bounded(
        self, node: Node, server: ImageServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layers, "MOST_BESIDE", 1 << 20)
        layer = archive({"big": bytes(2 << 20), "disk/x.img": DISK})
        made = image([gzip.compress(layer)], unpacked=[layer])
        refused(node, server, made, "unpack to more than")
        tail = archive({"disk/x.img": DISK}) + bytes(2 << 20)
        refused(node, server, image([tail]), "unpack to more than")
        monkeypatch.setattr(layers, "MOST_ENTRIES", 10)
        many = archive({f"file{number}": b"" for number in range(11)})
        refused(node, server, image([many]), "more than 10 entries")

    def test_a_long_header_is_not_read(self, node: Node, server: ImageServer) -> None:
        for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            info = regular("x", 1 << 40, type=kind)
            made = image([info.tobuf(tarfile.GNU_FORMAT)])
            refused(node, server, made, "a header that is too long")

    def test_headers_are_bounded_together(
        self, node: Node, server: ImageServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layers, "MOST_EXTENSIONS", 1 << 20)
        long = {"SCHILY.xattr.user.x": "x" * 100_000}
        many = [(regular(f"{number}", pax_headers=long), b"") for number in range(12)]
        refused(node, server, image([archive(many)]), "more than 1 MiB of headers")

    @pytest.mark.parametrize(
        "records", [b"5 a=\n" * 50_000, b"99 path=x\n", b"x path=x\n", b"0 \n"]
    )
    def test_an_extended_header_is_read_or_refused(
        self, node: Node, server: ImageServer, records: bytes
    ) -> None:
        header = regular("x", len(records), type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
        layer = header + records + bytes(-len(records) % 512) + archive({"disk/x": b""})
        known = "an extended header that is none|a number that is none|is empty"
        refused(node, server, image([layer]), known)

    def test_an_extended_header_renames_a_file(self, node: Node, server: ImageServer) -> None:
        entry = regular("disk/x", 1, pax_headers={"path": "x"})
        assert is_without_disk(node, server, image([archive([(entry, b"x")])]))

    @pytest.mark.parametrize(
        ("layer", "match"),
        [
            (b"no archive, " * 100, "no tar archive"),
            (archive({"disk/x.img": DISK})[:-300_000], "ends too early"),
            (archive({"a": b"b"})[:1024] + b"\xff" * 512, "a header that is none"),
            (gzip.compress(archive({"disk/x.img": DISK}))[:-20], "gzip compression"),
            (gzip.compress(b"x")[:10] + b"\xff" * 50, "gzip compression is damaged"),
            (zstandard.compress(archive({"a": b"b"}))[:8] + b"\xff" * 90, "zstd compression"),
        ],
        ids=["no-tar", "cut-tar", "odd-header", "cut-gzip", "odd-gzip", "odd-zstd"],
    )
    def test_a_damaged_layer_is_refused(
        self, node: Node, server: ImageServer, layer: bytes, match: str
    ) -> None:
        made = image([layer], unpacked=[layer])
        config = json.dumps({"os": "linux"}).encode()
        parts = [descriptor(layer, TAR)]
        kind = "application/vnd.oci.image.config.v1+json"
        made = manifest(descriptor(config, kind), parts, [config, layer])
        refused(node, server, made, match)

    def test_a_long_name_and_a_large_size_are_read_in_every_form(
        self, node: Node, server: ImageServer
    ) -> None:
        for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
                for info in (
                    regular("deep/" * 50 + "é", 3),
                    regular("disk/" + "x" * 200, len(DISK)),
                ):
                    tar.addfile(info, io.BytesIO(DISK[: info.size]))
            assert pulled(node, server, image([packed.getvalue()]), f"{number}") == DISK


class TestArtifacts:
    @pytest.mark.parametrize("media_type", ["application/octet-stream", TAR])
    def test_the_only_file_is_the_disk(
        self, node: Node, server: ImageServer, media_type: str
    ) -> None:
        # The second one is what oras calls every file unless told otherwise.
        assert pulled(node, server, artifact({"any": DISK}, media_type)) == DISK

    def test_of_several_files_it_is_the_one_that_is_called_so(
        self, node: Node, server: ImageServer
    ) -> None:
        made = artifact({"README.md": b"read", "fedora.qcow2": DISK})
        assert pulled(node, server, made) == DISK

    def test_of_several_that_are_called_so_it_is_none(
        self, node: Node, server: ImageServer
    ) -> None:
        made = artifact({"a.img": DISK, "b.img": DISK})
        refused(node, server, made, "2 files, 2 of which .*'a.img', 'b.img'")
        made = artifact({"a": DISK, "b": DISK})
        refused(node, server, made, "2 files, 0 of which")

    def test_it_may_be_an_archive(self, node: Node, server: ImageServer) -> None:
        packed = gzip.compress(archive({"disk/x.img": DISK}))
        assert pulled(node, server, artifact({"x.tar.gz": packed})) == DISK

    @pytest.mark.parametrize("name", ["x.img.zst", "x.tar.gz"])
    def test_what_it_is_does_not_depend_on_how_much_comes_at_first(
        self, node: Node, server: ImageServer, name: str
    ) -> None:
        packed = {
            "x.img.zst": zstandard.compress(DISK),
            "x.tar.gz": gzip.compress(archive({"disk/x.img": DISK})),
        }[name]
        artifact({name: packed}).serve(server, "vms/a", "1")
        server.resources[f"/v2/vms/a/blobs/{digest_of(packed)}"].breaks = [9]
        assert node.pull(f"{node.plain(server)}/vms/a:1").path.read_bytes() == DISK

    def test_an_archive_needs_a_disk(self, node: Node, server: ImageServer) -> None:
        refused(node, server, artifact({"x.tar": archive({"a": b"b"})}), "without a file in /disk")


class TestManifests:
    def test_the_image_of_the_nodes_platform_is_taken(
        self, node: Node, server: ImageServer
    ) -> None:
        other = container_disk(raw_disk("other"))
        made = index({"linux/s390x": other, OURS: container_disk(DISK)})
        made.serve(server, "vms/a", "1")
        found = node.pull(f"{node.plain(server)}/vms/a:1")
        assert found.path.read_bytes() == DISK
        assert found.digests == (f"{node.plain(server)}/vms/a@{made.digest}",)

    def test_a_platform_that_is_no_word_is_not_quoted(
        self, node: Node, server: ImageServer
    ) -> None:
        """It would be lines of the log, of any length."""
        made = index(
            {"linux/a\nb": container_disk(DISK), f"linux/{'x' * 5000}": container_disk(DISK)}
        )
        refused(node, server, made, f"no manifest for {OURS}; there are: none$")

    def test_there_may_be_none_for_it(self, node: Node, server: ImageServer) -> None:
        made = index({"linux/s390x": container_disk(DISK), "linux/mips": container_disk(DISK)})
        refused(node, server, made, f"no manifest for {OURS}; there are: linux/mips, linux/s390x")

    def test_an_index_of_an_index_is_refused(self, node: Node, server: ImageServer) -> None:
        made = index({OURS: index({OURS: container_disk(DISK)})})
        refused(node, server, made, "leads to another index")

    def test_by_digest_the_manifest_is_meant(self, node: Node, server: ImageServer) -> None:
        made = container_disk(DISK)
        made.serve(server, "vms/a", "1")
        name = f"{node.plain(server)}/vms/a@{made.digest}"
        found = node.pull(name)
        assert found.digests == (name,)
        assert found.names == ()
        server.resources[f"/v2/vms/a/manifests/{made.digest}"].content += b" "
        with pytest.raises(FailedPrecondition, match=f"is not {made.digest}; its content was"):
            node.pull(name)

    def test_what_did_not_change_is_not_fetched_again(
        self, node: Node, server: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        name = f"{node.plain(server)}/vms/a:1"
        first = node.pull(name)
        before = len(server.requests)
        assert node.pull(name).id == first.id
        assert paths(server)[before:] == ["/v2/vms/a/manifests/1"]
        container_disk(raw_disk("new")).serve(server, "vms/a", "1")
        assert node.pull(name).path.read_bytes() == raw_disk("new")

    @pytest.mark.parametrize("which", ["layer", "diff id", "config"])
    def test_a_wrong_digest_is_refused(self, node: Node, server: ImageServer, which: str) -> None:
        layer = archive({"disk/x.img": DISK})
        made = image([layer], unpacked=[b"other"] if which == "diff id" else None)
        if which != "diff id":
            number = 0 if which == "config" else 1
            digest = list(made.blobs)[number]
            data = bytearray(made.blobs[digest][0])
            data[-1:] = b"!"
            made.blobs[digest] = (bytes(data), "")
        match = "does not unpack to sha256:" if which == "diff id" else "is not sha256:.*changed"
        refused(node, server, made, match)

    def test_a_packed_layer_with_other_content_is_refused(
        self, node: Node, server: ImageServer
    ) -> None:
        """Though its packing is whole, and it has the size of the manifest."""
        layer = archive({"disk/x.img": DISK})
        packed = gzip.compress(layer, 0, mtime=0)
        made = image([packed], unpacked=[layer])
        other = gzip.compress(archive({"disk/x.img": DISK[:-1] + b"!"}), 0, mtime=0)
        assert len(other) == len(packed)
        made.blobs[descriptor(packed, "")["digest"]] = (other, "")
        refused(node, server, made, f"does not unpack to {descriptor(layer, '')['digest']}")

    def test_what_a_packed_layer_unpacks_to_counts(self, node: Node, server: ImageServer) -> None:
        """A registry that packs it anew changes nothing of the disk."""
        layer = archive({"disk/x.img": DISK})
        packed = gzip.compress(layer, mtime=0)
        made = image([packed], unpacked=[layer])
        made.blobs[descriptor(packed, "")["digest"]] = (gzip.compress(layer, mtime=1), "")
        assert pulled(node, server, made) == DISK

    def test_a_packed_layer_of_unknown_content_is_known_by_its_own_digest(
        self, node: Node, server: ImageServer
    ) -> None:
        layer = archive({"disk/x.img": DISK})
        packed = gzip.compress(layer, mtime=0)
        made = _with_config({}, packed)
        made.blobs[descriptor(packed, "")["digest"]] = (gzip.compress(layer, mtime=1), "")
        refused(node, server, made, "is not sha256:.*changed")

    def test_a_blob_of_another_length_is_refused(self, node: Node, server: ImageServer) -> None:
        layer = archive({"disk/x.img": DISK})
        made = image([layer])
        made.serve(server, "vms/a", "1")
        blob = server.resources[f"/v2/vms/a/blobs/{descriptor(layer, '')['digest']}"]
        name = f"{node.plain(server)}/vms/a:1"
        for length in (True, False):
            blob.content, blob.length = layer + b"!", length
            with pytest.raises(FailedPrecondition, match=f"sends more of .* than the {len(layer)}"):
                node.pull(name)
        blob.content = layer[:-1]
        with pytest.raises(FailedPrecondition, match=f"has {len(layer) - 1} of the {len(layer)}"):
            node.pull(name)
        assert node.files == []

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (b"{", "no JSON"),
            (b"[" * 5000, "no JSON"),
            (b"[]", "no JSON object"),
            (b'{"schemaVersion": 1}', "Docker's first schema"),
            (b'{"mediaType": "text/x"}', "of an unknown type, 'text/x'"),
            (b'{"layers": []}', "has no layers"),
            (b'{"layers": [1]}', "an entry of its manifest's layers is no descriptor"),
            (b'{"layers": [{"digest": "sha256:1"}]}', "no sha256 or sha512 digest"),
            (b'{"mediaType": "%b", "manifests": []}' % INDEX.encode(), "has no manifests"),
        ],
    )
    def test_a_malformed_one_is_refused(
        self, node: Node, server: ImageServer, text: bytes, match: str
    ) -> None:
        refused(node, server, OciImage(text, MANIFEST), match)

    @pytest.mark.parametrize(
        "fields",
        [{"size": -1}, {"size": "1"}, {"size": True}, {"digest": "md5:1"}, {"size": 1 << 70}],
    )
    def test_a_malformed_descriptor_is_refused(
        self, node: Node, server: ImageServer, fields: dict[str, Any]
    ) -> None:
        layer = archive({"disk/x.img": DISK})
        made = manifest(descriptor(b"{}", "x"), [{**descriptor(layer, TAR), **fields}], [layer])
        refused(node, server, made, "layers has no (?:size|sha256)")

    def test_one_that_is_too_large_is_not_read(self, node: Node, server: ImageServer) -> None:
        refused(node, server, OciImage(b" " * (LARGEST + 1), MANIFEST), "larger than")
        layer = archive({"disk/x.img": DISK})
        many = manifest(descriptor(b"{}", "x"), [descriptor(layer, TAR)] * (MOST_LAYERS + 1), [])
        refused(node, server, many, f"{MOST_LAYERS + 1} layers; the most is")
        large = manifest(descriptor(b"{}", "x"), [{**descriptor(layer, TAR), "size": 1 << 40}], [])
        refused(node, server, large, f"layers have {1 << 40} bytes; the most is")
        kind = "application/vnd.oci.image.config.v1+json"
        config = {**descriptor(b"{}", kind), "size": 1 << 40}
        huge = manifest(config, [descriptor(layer, TAR)], [layer])
        refused(node, server, huge, "configuration is larger than")

    def test_diff_ids_must_fit_the_layers(self, node: Node, server: ImageServer) -> None:
        layer = archive({"disk/x.img": DISK})
        refused(node, server, _with_config({"rootfs": {"diff_ids": []}}, layer), "0 diff_ids for 1")
        refused(node, server, _with_config({"rootfs": {"diff_ids": [1]}}, layer), "are no digests")
        assert pulled(node, server, _with_config({}, layer), "2") == DISK


def _with_config(config: Any, layer: bytes, **changes: Any) -> OciImage:
    text = json.dumps(config).encode()
    kind = "application/vnd.oci.image.config.v1+json"
    return manifest(descriptor(text, kind), [descriptor(layer, TAR)], [text, layer], **changes)


def test_a_broken_download_goes_on_where_it_broke(node: Node, server: ImageServer) -> None:
    layer = archive({"disk/x.img": DISK})
    made = image([layer])
    made.serve(server, "vms/a", "1")
    path = f"/v2/vms/a/blobs/{descriptor(layer, '')['digest']}"
    server.resources[path].breaks = [100_000, 200_000]
    assert node.pull(f"{node.plain(server)}/vms/a:1").path.read_bytes() == DISK
    asked = [r.headers.get("range") for r in server.requests if r.path == path]
    assert asked == [None, "bytes=100000-", "bytes=300000-"]


def test_it_goes_on_where_the_registry_sends_everything_again(
    node: Node, server: ImageServer
) -> None:
    layer = archive({"disk/x.img": DISK})
    image([layer]).serve(server, "vms/a", "1")
    blob = server.resources[f"/v2/vms/a/blobs/{descriptor(layer, '')['digest']}"]
    blob.breaks, blob.ranges = [100_000], False
    assert node.pull(f"{node.plain(server)}/vms/a:1").path.read_bytes() == DISK


def test_a_registry_that_drips_is_cut_off(
    node: Node, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtlet.image_servers.pace.WINDOW", 1e-9)
    node.least_rate = "1Pi"
    container_disk(DISK).serve(server, "vms/a", "1")
    with pytest.raises(FailedPrecondition, match="less than .* bytes a second.*imageLeastRate"):
        node.pull(f"{node.plain(server)}/vms/a:1")
    assert node.files == []


def test_an_unknown_blob_is_not_taken_for_another_kind_of_server(
    node: Node, server: ImageServer
) -> None:
    container_disk(DISK).serve(server, "vms/a", "1")
    for path in list(server.resources):
        if "/blobs/" in path:
            server.resources[path] = Resource(status=404)
    with pytest.raises(VirtletError, match="does not have a blob of vms/a"):
        node.pull(f"{node.plain(server)}/vms/a:1")
