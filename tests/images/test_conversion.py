"""Images that are unpacked and converted on their way into the store, by the built-in plugin."""

import gzip
import lzma
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.image_source import FakeImageSource
from virtlet.errors import InvalidArgument, ResourceExhausted, Unavailable
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import ImageRoute, Images, Retry
from virtlet.images.staging import ImageLimits
from virtlet.model.image import Conversion, Image
from virtlet.model.reference import parse_reference
from virtlet.plugins.image_formats.plugin import Plugin

from .disks import fill_before_each_step, qemu_img, raw_disk, recognize
from .test_store import files

UNPACK = Plugin().virtlet_unpack_image
DISK = raw_disk("packed", 256 * 1024)
OTHER = raw_disk("other", 8192)
Pack = Callable[[bytes], bytes]


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, check=True, stdout=-1).stdout


PACKS: dict[str, Pack] = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.fixture
def server() -> FakeImageSource:
    return FakeImageSource()


@pytest.fixture
def images(store: ImageStore) -> Images:
    return Images(store, Retry(attempts=4, delay=0.001))


def pull(images: Images, server: FakeImageSource, content: bytes | None = None) -> Image:
    if content is not None:
        server.contents["x"] = content
    return images.pull(parse_reference("x"), evolve(server.route(), unpack=UNPACK))


def _running() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


_before: set[str] = set()


@pytest.fixture(autouse=True)
def _programs_from_before() -> None:
    """What fixtures of other tests have started runs on."""
    _before.clear()
    _before.update(_running())


def children() -> set[str]:
    """Programs that run since the test has begun."""
    return _running() - _before


@pytest.mark.parametrize("format", PACKS)
def test_a_packed_image_is_unpacked_and_goes_by_what_was_fetched(
    images: Images, server: FakeImageSource, format: str
) -> None:
    server.validators["x"] = '"v1"'
    image = pull(images, server, PACKS[format](DISK))
    assert image.path.read_bytes() == DISK
    assert (image.format, image.source_format, image.size) == ("raw", format, len(DISK))
    assert image.path.stat().st_blocks * 512 < len(DISK)
    assert images.store.get(parse_reference(f"x@{image.id}")) == image
    # Its server says that it is the same still.
    sent = server.sent
    assert pull(images, server).id == image.id
    assert server.sent == sent
    assert children() == set()


def test_an_image_shorter_than_a_head_is_looked_at_too(
    images: Images, server: FakeImageSource
) -> None:
    assert len(zstd(DISK)) < 512
    assert pull(images, server, zstd(DISK)).source_format == "zstd"
    server.contents["y"] = b"x"
    with pytest.raises(InvalidArgument, match="neither qcow2 nor"):
        images.pull(parse_reference("y"), evolve(server.route(), unpack=UNPACK))


def test_a_broken_download_of_a_packed_image_goes_on_where_it_broke(
    images: Images, server: FakeImageSource
) -> None:
    server.validators["x"] = '"v1"'
    noise = bytearray(os.urandom(64 * 1024))
    noise[510:512] = b"\x55\xaa"
    noise[:2] = b"\xeb\xfe"
    server.breaks = [100, 3000, 20_000]
    image = pull(images, server, lzma.compress(noise))
    assert image.path.read_bytes() == noise
    assert server.sent == len(server.contents["x"])
    assert len(server.fetches) == 4
    # Also in the next pull.
    server.validators["x"] = '"v2"'
    server.breaks = [3000, 0]
    with pytest.raises(Unavailable, match="broke"):
        pull(images, server, gzip.compress(noise))
    server.sent = 0
    assert pull(images, server).path.read_bytes() == noise
    assert server.sent == len(server.contents["x"]) - 3000
    assert children() == set()


@pytest.mark.parametrize("format", PACKS)
@pytest.mark.parametrize("cut", [1, 8])
def test_a_packed_image_that_is_cut_off_is_refused(
    images: Images, server: FakeImageSource, format: str, cut: int
) -> None:
    with pytest.raises(InvalidArgument, match=f"x: it is {format}-compressed, and damaged or cut"):
        pull(images, server, PACKS[format](DISK)[:-cut])
    assert files(images.store) == []
    assert children() == set()


def test_what_follows_a_packed_image_is_refused(images: Images, server: FakeImageSource) -> None:
    with pytest.raises(InvalidArgument, match="damaged or cut off"):
        pull(images, server, zstd(DISK) + b"x" * 300_000)
    assert files(images.store) == []


def test_a_pack_in_a_pack_is_refused(images: Images, server: FakeImageSource) -> None:
    with pytest.raises(InvalidArgument, match="it is gzip-compressed, not a qcow2 or raw disk"):
        pull(images, server, zstd(gzip.compress(DISK)))
    assert files(images.store) == []


@pytest.mark.parametrize("format", PACKS)
def test_an_image_that_unpacks_to_more_than_the_limit_is_refused(
    images: Images, server: FakeImageSource, format: str
) -> None:
    with pytest.raises(ResourceExhausted, match="image x: larger than the limit of 1048576 bytes"):
        pull(images, server, PACKS[format](DISK + bytes(2 << 20)))
    assert files(images.store) == []
    assert children() == set()


def test_an_image_that_unpacks_to_a_thousand_times_its_size_is_refused(
    tmp_path: Path, server: FakeImageSource
) -> None:
    limits = ImageLimits(size=8 << 30, spare=0)
    layout = Layout(tmp_path / "images", 0)
    store = ImageStore(layout, in_use=set, recognize=recognize, limits=limits)
    bomb = subprocess.run(
        "head -c 1100M /dev/zero | zstd -qc", shell=True, check=True, stdout=-1
    ).stdout
    with pytest.raises(ResourceExhausted, match="unpacks to more than 1000 times its size"):
        pull(Images(store), server, bomb)
    assert files(store) == []


def test_a_program_that_is_ended_is_started_again_from_the_beginning(
    images: Images, server: FakeImageSource
) -> None:
    """As one that the OOM killer chose."""
    server.validators["x"] = '"v1"'
    ends = [Conversion(format="gzip", argv=("sh", "-c", "kill -KILL $$")), None]

    def unpack(name: str, head: bytes) -> Conversion | None:
        return ends.pop(0) or UNPACK(name, head)

    server.contents["x"] = gzip.compress(DISK)
    route = evolve(server.route(), unpack=unpack)
    assert images.pull(parse_reference("x"), route).path.read_bytes() == DISK
    assert (ends, server.sent) == ([], 2 * len(server.contents["x"]))


@pytest.mark.parametrize(
    ("kind", "options"), [("vmdk", "subformat=streamOptimized"), ("vmdk", ""), ("vhdx", "")]
)
def test_a_disk_of_another_hypervisor_is_converted(
    tmp_path: Path, server: FakeImageSource, kind: str, options: str
) -> None:
    store = ImageStore(Layout(tmp_path / "images", 0), in_use=set, recognize=recognize)
    raw = tmp_path / "raw"
    raw.write_bytes(DISK + bytes((4 << 20) - len(DISK)))
    qemu_img("convert", "-O", kind, *(["-o", options] if options else []), raw, tmp_path / kind)
    content = (tmp_path / kind).read_bytes()
    image = pull(Images(store), server, content)
    assert (image.format, image.source_format, image.virtual_size) == ("qcow2", kind, 4 << 20)
    assert image.path.stat().st_mode & 0o777 == 0o444
    assert image.path.stat().st_uid == os.getuid()
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image.path)
    # Packed, it is another image of the same disk.
    other = pull(Images(store), server, zstd(content))
    assert other.source_format == f"zstd {kind}"
    assert other.id != image.id
    assert len(files(store)) == 3


def test_a_conversion_ends_when_nobody_waits_any_more_or_its_result_is_too_large(
    images: Images, server: FakeImageSource
) -> None:
    asked = 0

    def run_on(line: str) -> ImageRoute:
        conversion = Conversion(format="vmdk", argv=("sh", "-c", line))

        def never(name: str, file: Path) -> tuple[str, object]:
            plugin, found = recognize(name, file)
            return plugin, evolve(found, conversion=conversion)

        return evolve(server.route(), recognize=never)  # type: ignore[arg-type]

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return not children()

    server.contents["x"] = DISK
    with pytest.raises(Unavailable, match="cancelled by its caller"):
        images.pull(parse_reference("x"), run_on("exec sleep 600"), wanted=wanted)
    with pytest.raises(ResourceExhausted, match="larger than the limit of 1048576 bytes"):
        images.pull(parse_reference("x"), run_on("exec head -c 2M /dev/zero"))
    with pytest.raises(InvalidArgument, match="sh cannot convert it from vmdk; it is damaged"):
        images.pull(parse_reference("x"), run_on("exit 1"))
    with pytest.raises(InvalidArgument, match="no VM starts from raw as it is"):
        images.pull(parse_reference("x"), run_on("exec cat"))
    assert files(images.store) == []
    assert children() == set()


def test_programs_are_nobody_without_a_network_and_environment_in_bounds(
    images: Images, server: FakeImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    status = "grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/self/status"
    line = f"{status}; readlink /proc/self/ns/net; ulimit -v; ulimit -f; env; cat > /dev/null"
    tell = Conversion(format="told", argv=("sh", "-c", line))
    server.contents["x"] = b"packed" * 1000
    said: list[str] = []

    def listen(name: str, file: Path) -> tuple[str, object]:
        said.append(file.read_text())
        raise InvalidArgument("heard")

    route = evolve(server.route(), recognize=listen, unpack=lambda *_: tell)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="heard"):
        images.pull(parse_reference("x"), route)
    words = said[0].split()
    assert words[:2] == ["Uid:", "65534"]
    assert words[words.index("CapEff:") + 1] == "0" * 16
    assert os.readlink("/proc/self/ns/net") not in words
    assert str(1 << 20) in words  # Address space, in KiB.
    assert str((1 << 20) // 512) in words or str((1 << 20) // 1024) in words
    assert "hunter2" not in said[0]


def test_a_full_disk_is_told_wherever_it_is_met_and_nothing_is_left(
    tmp_path: Path, server: FakeImageSource
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        store = ImageStore(
            Layout(small / "images", 0),
            in_use=set,
            recognize=recognize,
            limits=ImageLimits(spare=0),
        )
        images = Images(store)
        kept = pull(images, server, DISK)
        noise = bytearray(os.urandom(3 << 20))
        noise[510:512] = b"\x55\xaa"
        noise[:2] = b"\xeb\xfe"
        raw = tmp_path / "raw"
        raw.write_bytes(noise[: 1 << 20])
        qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, tmp_path / "vmdk")
        server.contents["raw"] = bytes(noise)
        server.contents["pack"] = gzip.compress(bytes(1 << 20) + bytes(noise) * 2)
        server.contents["disk"] = (tmp_path / "vmdk").read_bytes()
        before = files(store)
        for name in ("raw", "pack", "disk"):
            with pytest.raises(ResourceExhausted, match=f"image {name}: no space for it in"):
                images.pull(parse_reference(name), evolve(server.route(), unpack=UNPACK))
            assert files(store) == before
        # A full disk keeps nobody from removing.
        with (small / "filler").open("wb", buffering=0) as filler:
            while os.statvfs(small).f_bavail:
                filler.write(bytes(4096))
        server.contents["x:again"] = DISK
        with pytest.raises(ResourceExhausted, match="no space for it in"):
            images.pull(parse_reference("x:again"), server.route())
        assert files(store) == before
        assert store.remove(parse_reference(kept.id))
        assert files(store) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("there", "name", "sent"),
    [
        ("", "x", OTHER),
        ("x", "x", OTHER),
        ("x", "x:v2", DISK),
        ("x", "x", gzip.compress(OTHER)),
    ],
    ids=["first", "moved", "second name", "unpacked"],
)
def test_a_disk_that_is_full_from_any_step_on_keeps_what_was_there(
    images: Images, server: FakeImageSource, there: str, name: str, sent: bytes
) -> None:
    """The pull says so, and works as soon as there is room."""
    store = images.store
    if there:
        pull(images, server, DISK)
    server.contents[name] = sent
    route = evolve(server.route(), unpack=UNPACK)
    listed = store.list()
    steps = fill_before_each_step(
        store.usage().mountpoint,
        lambda: images.pull(parse_reference(name), route),
        lambda: (files(store), store.list()),
    )
    assert steps >= 4
    assert store.list() != listed
