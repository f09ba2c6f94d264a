"""Container images without a disk: a file system of their layers, which is mounted as a volume."""

import gzip
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import frozen

from tests.fakes.image_server import ImageServer
from tests.fakes.oci_images import OciImage, archive, image, regular
from tests.images.disks import fill_before_each_step, program_that, raw_disk
from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, VirtletError
from virtlet.model.image import Image
from virtlet.plugins.image_oci import layers
from virtlet.plugins.image_oci.content import refuse_to_start

from .conftest import LIMIT, Node, paths, recognize

LINE = re.compile(r"(\S+) (\S+) +(\d+) \S+ \S+ squashfs-root/(.+)")
SMALL_DISK = 4 << 20
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


@frozen
class SmallDisk:
    """A node whose store has a small disk of its own, and a directory there for everybody."""

    node: Node
    room: Path

    def fill(self, left: int) -> Path:
        """Leave so many bytes."""
        found = os.statvfs(self.room)
        filler = self.room / "filler"
        filler.write_bytes(bytes(found.f_bavail * found.f_frsize - left))
        return filler


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    with TemporaryDirectory(prefix="virtlet-test-") as made, ExitStack() as mounted:
        directory = Path(made)
        directory.chmod(0o755)
        images, room = directory / "images", directory / "room"

        def mount(*arguments: str, on: Path) -> None:
            on.mkdir()
            subprocess.run(["mount", *arguments, str(on)], check=True)
            mounted.callback(lambda: subprocess.run(["umount", str(on)], check=True))

        mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", on=images)
        (images / "room").mkdir()
        mount("--bind", str(images / "room"), on=room)
        room.chmod(0o777)
        yield SmallDisk(Node(directory), room)


def test_a_disk_that_is_full_at_any_step_keeps_what_was_there(
    small_disk: SmallDisk, server: ImageServer
) -> None:
    """While the layers arrive, while the file system is made, and at its very end."""
    node = small_disk.node
    kept = pulled(node, server, image([archive({"kept": b"kept"})]))
    size = 256 << 10
    image([archive({"a": os.urandom(size), "b": b"b"})]).serve(server, "apps/a", "2")
    name = f"{node.plain(server)}/apps/a:2"
    before, listed = node.files, node.store.list()
    # The archive takes a little more than the file, the file system as much once more.
    most = 2 * size + (64 << 10)
    full = 0
    for left in sorted([*range(0, most, 48 << 10), *range(2 * size, most, 4096)]):
        filler = small_disk.fill(left)
        try:
            found = node.pull(name)
        except ResourceExhausted as error:
            full, said = left, str(error)
        else:
            assert len(content(found, "a")) == size
            assert content(found, "b") == b"b"
            break
        finally:
            filler.unlink()
        assert "apps/a: no space for it in" in said
        assert (node.files, node.store.list()) == (before, listed)
    assert full > 2 * size
    assert {one.id for one in node.store.list()} == {kept.id, found.id}


def test_a_disk_that_is_full_from_any_write_on_keeps_what_was_there(
    node: Node, server: ImageServer
) -> None:
    """Also where what is known of the image is written, and its name."""
    kept = pulled(node, server, image([archive({"kept": b"kept"})]))
    image([archive({"a": b"b"})]).serve(server, "apps/a", "2")
    name = f"{node.plain(server)}/apps/a:2"
    root = node.directory / "images"
    steps = fill_before_each_step(
        root, lambda: node.pull(name), lambda: (node.files, node.store.list())
    )
    assert steps >= 8
    assert len(node.store.list()) == 2
    assert content(kept, "kept") == b"kept"


@pytest.mark.parametrize("left", [0, 4096, 128 << 10, 250 << 10])
def test_a_disk_that_others_fill_while_the_file_system_is_made_is_told_as_full(
    small_disk: SmallDisk, server: ImageServer, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """What is written then ends in an error, not at the bound that the free space was before."""
    node, more = small_disk.node, small_disk.room / "more"
    image([archive({"a": os.urandom(256 << 10)})]).serve(server, "apps/a", "1")
    free = f"$(stat -f -c '%a * %S' {small_disk.room})"
    line = f"head -c $(({free} - {left})) /dev/zero >{more}"
    with monkeypatch.context() as patch:
        program_that(line, small_disk.room.parent / "bin", patch, name="sqfstar")
        with pytest.raises(ResourceExhausted, match="apps/a: no space for it in"):
            node.pull(f"{node.plain(server)}/apps/a:1")
    assert more.stat().st_size > 1 << 20
    more.unlink()
    assert (node.files, node.store.list()) == ([], ())
    assert tree(node.pull(f"{node.plain(server)}/apps/a:1")).keys() == {"a"}


def test_a_file_system_that_is_cut_off_is_refused(node: Node, server: ImageServer) -> None:
    found = pulled(node, server, image([archive({"a": b"b" * 9000})]))
    cut = node.directory / "cut"
    cut.write_bytes(found.path.read_bytes()[:-4096])
    with pytest.raises(InvalidArgument, match="image x: .* cut off"):
        recognize("x", cut)
