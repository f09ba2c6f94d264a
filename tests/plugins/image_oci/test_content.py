"""Container images without a disk: a file system of their layers, which is mounted as a volume."""

import gzip
import re
import subprocess
import tarfile

import pytest

from tests.fakes.image_server import ImageServer
from tests.fakes.oci_images import OciImage, archive, image, regular
from tests.images.disks import raw_disk
from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, VirtletError
from virtlet.model.image import Image
from virtlet.plugins.image_oci import layers
from virtlet.plugins.image_oci.content import refuse_to_start

from .conftest import LIMIT, Node, paths, recognize

LINE = re.compile(r"(\S+) (\S+) +(\d+) \S+ \S+ squashfs-root/(.+)")
DIRECTORY, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def pulled(node: Node, server: ImageServer, made: OciImage) -> Image:
    """What comes into the store of an image that a server has."""
    made.serve(server, "apps/a", "1")
    return node.pull(f"{node.plain(server)}/apps/a:1")


def tree(found: Image) -> dict[str, tuple[str, str]]:
    """Path to (mode, owner) of all that an image has."""
    assert (found.format, found.recognized_by) == ("squashfs", "image_oci")
    shown = subprocess.run(
        ["unsquashfs", "-quiet", "-lln", found.path], check=True, capture_output=True, text=True
    ).stdout
    entries = (LINE.fullmatch(line) for line in shown.splitlines())
    return {entry[4]: (entry[1], entry[2]) for entry in entries if entry}


def content(found: Image, path: str) -> bytes:
    """Of a file."""
    command = ["unsquashfs", "-cat", str(found.path), path]
    return subprocess.run(command, check=True, capture_output=True).stdout


def refused(node: Node, server: ImageServer, made: OciImage, match: str) -> None:
    """Expect an image to be refused, and nothing of it to be left."""
    with pytest.raises(VirtletError, match=match) as error:
        pulled(node, server, made)
    assert isinstance(error.value, FailedPrecondition | ResourceExhausted)
    assert node.files == []


def test_a_file_system_has_the_files_with_modes_owners_and_links(
    node: Node, server: ImageServer
) -> None:
    layer = archive(
        [
            (regular("usr/", type=DIRECTORY, mode=0o750, uid=7, gid=8), b""),
            (regular("usr/tool", 4, mode=0o4755, uid=3_000_000, gid=1), b"tool"),
            (regular("usr/again", type=HARD, linkname="./usr/tool"), b""),
            (regular("bin", type=LINK, linkname="usr"), b""),
            (regular("deep/" * 60 + "ä" * 90, 1), b"x"),
        ]
    )
    found = pulled(node, server, image([gzip.compress(layer)], unpacked=[layer]))
    shown = tree(found)
    assert shown["usr"] == ("drwxr-x---", "7/8")
    assert shown["usr/tool"] == shown["usr/again"] == ("-rwsr-xr-x", "3000000/1")
    assert shown["bin -> usr"][0] == "lrwxrwxrwx"
    assert shown["deep"] == ("drwxr-xr-x", "0/0")
    assert "deep/" * 60 + "ä" * 90 in shown
    assert content(found, "usr/again") == b"tool"
    assert found.virtual_size % 512 == 0


def test_upper_layers_replace_and_take_away(node: Node, server: ImageServer) -> None:
    below = archive(
        [
            (regular("kept/a", 1), b"a"),
            (regular("kept", type=DIRECTORY, mode=0o700), b""),
            *((regular(name, 3), b"old") for name in ("changed", "gone", "tree/x/y", "empty/z")),
            (regular("was-file", 3), b"old"),
            (regular("was-directory/inside", 3), b"old"),
        ]
    )
    above = archive(
        [
            (regular(".wh.gone"), b""),
            (regular(".wh.tree"), b""),
            (regular("tree/new", 3), b"new"),
            (regular("empty/.wh..wh..opq"), b""),
            (regular("empty/new", 3), b"new"),
            (regular("changed", 3), b"new"),
            (regular("kept/b", 1), b"b"),
            (regular("was-file/inside", 3), b"new"),
            (regular("was-directory", 3), b"new"),
            (regular(".wh..wh.plnk", type=DIRECTORY), b""),
        ]
    )
    found = pulled(node, server, image([below, above]))
    shown = tree(found)
    assert sorted(shown) == [
        *("changed", "empty", "empty/new", "kept", "kept/a", "kept/b", "tree", "tree/new"),
        *("was-directory", "was-file", "was-file/inside"),
    ]
    assert content(found, "changed") == content(found, "was-directory") == b"new"
    # A directory that the layer above has only as a parent is as the one below says.
    assert shown["kept"][0] == "drwx------"


def test_a_hard_link_keeps_what_an_upper_layer_takes_away(node: Node, server: ImageServer) -> None:
    below = archive(
        [
            (regular("first", 4, mode=0o640), b"data"),
            *((regular(name, type=HARD, linkname="first"), b"") for name in ("second", "third")),
            (regular("fourth", type=HARD, linkname="second"), b""),
        ]
    )
    found = pulled(node, server, image([below, archive({"first": b"other"})]))
    assert content(found, "first") == b"other"
    for name in ("second", "third", "fourth"):
        assert content(found, name) == b"data"
        assert tree(found)[name][0] == "-rw-r-----"
    found = pulled(node, server, image([below, archive({".wh.first": b""})]))
    assert sorted(tree(found)) == ["fourth", "second", "third"]
    assert sum("/blobs/" in path for path in paths(server)) > 4


def test_devices_are_left_out(node: Node, server: ImageServer) -> None:
    device = regular("dev/sda", type=tarfile.BLKTYPE, devmajor=8)
    linked = regular("dev/sdb", type=HARD, linkname="dev/sda")
    pipe = regular("dev/pipe", type=tarfile.FIFOTYPE)
    made = image([archive([(device, b""), (linked, b""), (pipe, b""), (regular("x", 1), b"x")])])
    assert sorted(tree(pulled(node, server, made))) == ["x"]


def test_an_image_may_be_empty(node: Node, server: ImageServer) -> None:
    assert tree(pulled(node, server, image([archive({})]))) == {}


def test_the_same_content_is_one_image_and_not_fetched_again(
    node: Node, server: ImageServer
) -> None:
    made = image([archive({"a": b"b"})])
    first = pulled(node, server, made)
    asked = sum("/blobs/" in path for path in paths(server))
    again = pulled(node, server, made)
    assert (again.id, again.digests) == (first.id, first.digests)
    assert sum("/blobs/" in path for path in paths(server)) == asked


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([(regular("a/../../etc/x"), b"")], r"an entry with \.\. in its path"),
        ([(regular("a", type=HARD, linkname="../../etc/shadow"), b"")], r"with \.\. in its path"),
        ([(regular("a", type=HARD, linkname="/etc/shadow"), b"")], "hard link to '/etc/shadow'"),
        ([(regular("x" * 256), b"")], "a path that is too long"),
        ([(regular("x/" * 200 + "y"), b"")], "a path that is too long"),
        ([(regular("a", 1), b"1"), (regular("./a", 1), b"2")], "has '/a' twice"),
        ([(regular("a", 1, uid=1 << 40), b"1")], "belongs to nobody"),
        ([(regular("a", type=LINK, linkname=""), b"")], "leads nowhere"),
        ([(regular("a", pax_headers={"GNU.sparse.major": "1"}), b"")], "as a sparse file"),
    ],
    ids=["path", "link-out", "link-other", "name", "depth", "twice", "owner", "link", "sparse"],
)
def test_an_odd_entry_is_refused(
    node: Node,
    server: ImageServer,
    entries: list[tuple[tarfile.TarInfo, bytes]],
    match: str,
) -> None:
    refused(node, server, image([archive(entries)]), match)


def test_content_is_bounded(
    node: Node, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = archive({"a": bytes(LIMIT + 512), "b": b"b"})
    made = image([gzip.compress(bomb)], unpacked=[bomb])
    refused(node, server, made, f"larger than the limit of {LIMIT} bytes")
    monkeypatch.setattr(layers, "MOST_BESIDE", 1 << 20)
    refused(node, server, image([archive({"a": bytes(2 << 20)})]), "unpack to more than")
    monkeypatch.setattr(layers, "MOST_ENTRIES", 50)
    # Each directory of a path counts, as it is remembered.
    deep = archive({f"{number}/" * 20 + "x": b"" for number in range(5)})
    refused(node, server, image([deep]), "more than 50 entries")


def test_what_cannot_be_a_volume_may_have_a_disk(node: Node, server: ImageServer) -> None:
    odd = (regular("a", type=HARD, linkname="nothing"), b"")
    disk = raw_disk("below")
    made = image([archive({"disk/x.img": disk}), archive([odd])])
    assert pulled(node, server, made).path.read_bytes() == disk


def test_no_vm_starts_from_it(node: Node, server: ImageServer) -> None:
    found = pulled(node, server, image([archive({"bin/sh": b"x"})]))
    match = r"apps/a: it is a container image without a disk: .*ADD disk.qcow2 /disk/"
    with pytest.raises(FailedPrecondition, match=match):
        refuse_to_start(found, "apps/a")


def test_a_file_system_that_is_cut_off_is_refused(node: Node, server: ImageServer) -> None:
    found = pulled(node, server, image([archive({"a": b"b" * 9000})]))
    cut = node.directory / "cut"
    cut.write_bytes(found.path.read_bytes()[:-4096])
    with pytest.raises(InvalidArgument, match="image x: .* cut off"):
        recognize("x", cut)
