import gzip
import json
import lzma
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.images.disks import program_that, qemu_img, raw_disk, write_qcow2, write_raw
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable
from virtlet.host.qcow2 import parse_header
from virtlet.model.image import RecognizedImage
from virtlet.plugins.image_formats.plugin import Plugin
from virtlet.testing import configured


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that is open to everybody, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="virtlet-test-") as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def look(path: Path) -> RecognizedImage:
    return Plugin().virtlet_recognize_image("busybox", path)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "compat=0.10",
        "cluster_size=512",
        "extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
    ],
)
def test_every_common_kind_of_qcow2_is_taken(tmp_path: Path, options: str) -> None:
    path = write_qcow2(tmp_path / "disk", "1M", options)
    assert look(path) == RecognizedImage(format="qcow2", virtual_size=1 << 20)


def test_a_raw_disk_with_a_boot_sector_is_taken(tmp_path: Path) -> None:
    found = look(write_raw(tmp_path / "disk"))
    assert found == RecognizedImage(format="raw", virtual_size=65536)


@pytest.mark.parametrize("offset", [512, 4096])
def test_a_raw_disk_with_a_gpt_alone_is_taken(tmp_path: Path, offset: int) -> None:
    content = bytearray(65536)
    content[offset : offset + 8] = b"EFI PART"
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert look(path).format == "raw"


def test_a_raw_disk_that_holds_a_qcow2_further_on_is_raw(tmp_path: Path) -> None:
    inner = write_qcow2(tmp_path / "inner").read_bytes()
    path = tmp_path / "disk"
    path.write_bytes(raw_disk() + inner + b"\0" * (-len(inner) % 512))
    assert look(path).format == "raw"


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    base = write_raw(tmp_path / "base")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", tmp_path / "disk")
    with pytest.raises(InvalidArgument, match="backing file"):
        look(tmp_path / "disk")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    write_qcow2(tmp_path / "disk", "1M", f"data_file={tmp_path}/data")
    with pytest.raises(InvalidArgument, match="external file"):
        look(tmp_path / "disk")


def test_an_encrypted_disk_is_refused(tmp_path: Path) -> None:
    qemu_img(
        *("create", "-f", "qcow2", "--object", "secret,id=s,data=geheim"),
        *("-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        *(tmp_path / "disk", "1M"),
    )
    with pytest.raises(InvalidArgument, match="encrypted"):
        look(tmp_path / "disk")


def test_a_disk_without_a_size_is_refused(tmp_path: Path) -> None:
    write_qcow2(tmp_path / "disk", "0")
    with pytest.raises(InvalidArgument, match="its disk has no size"):
        look(tmp_path / "disk")


def test_a_qcow2_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", "x", 1 << 20)
    with (tmp_path / "raw").open("r+b") as file:
        file.seek(512)
        file.write(b"x" * ((1 << 20) - 512))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "disk")
    with (tmp_path / "disk").open("r+b") as file:
        file.truncate(700_000)
    with pytest.raises(InvalidArgument, match="damaged or cut off"):
        look(tmp_path / "disk")


@pytest.mark.parametrize("kind", ["vdi", "vpc", "qed", "qcow", "parallels"])
def test_other_image_formats_are_named_and_refused(tmp_path: Path, kind: str) -> None:
    qemu_img("create", "-f", kind, tmp_path / "disk", "16M")
    with pytest.raises(InvalidArgument, match="convert"):
        look(tmp_path / "disk")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vhdx", ""),
        ("vhdx", "subformat=fixed"),
    ],
)
def test_a_disk_of_another_hypervisor_is_to_be_converted(
    tmp_path: Path, kind: str, options: str
) -> None:
    raw = write_raw(tmp_path / "raw", size=16 << 20)
    extra = ["-o", options] if options else []
    qemu_img("convert", "-f", "raw", "-O", kind, *extra, raw, tmp_path / "disk")
    found = look(tmp_path / "disk")
    assert (found.format, found.virtual_size) == (kind, 16 << 20)
    assert found.conversion is not None
    assert found.conversion.format == kind


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_vmdk_of_several_files_is_refused(tmp_path: Path, subformat: str) -> None:
    qemu_img("create", "-f", "vmdk", "-o", f"subformat={subformat}", tmp_path / "disk.vmdk", "16M")
    for path in tmp_path.iterdir():
        with pytest.raises(InvalidArgument, match="(other files|a part of|neither qcow2 nor)"):
            look(path)


def _changed(path: Path, offset: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return path


def test_a_vmdk_that_names_other_files_is_refused_unopened(tmp_path: Path) -> None:
    other = write_raw(tmp_path / "other")
    extent = f'# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 128 FLAT "{other}" 0\n'
    qemu_img("create", "-f", "vmdk", tmp_path / "disk", "16M")
    _changed(tmp_path / "disk", 12, bytes(8))  # Its capacity: QEMU then goes by its description.
    _changed(tmp_path / "disk", 512, extent.encode())
    with pytest.raises(InvalidArgument, match="a part of a VMDK image"):
        look(tmp_path / "disk")
    (tmp_path / "text").write_text(extent)
    with pytest.raises(InvalidArgument, match="a VMDK description of other files"):
        look(tmp_path / "text")


def test_a_disk_of_another_hypervisor_with_a_parent_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "vmdk", tmp_path / "base", "16M")
    qemu_img("create", "-f", "vmdk", "-b", tmp_path / "base", "-F", "vmdk", tmp_path / "disk")
    with pytest.raises(InvalidArgument, match="it stands on a parent disk"):
        look(tmp_path / "disk")
    qemu_img("create", "-f", "vhdx", tmp_path / "vhdx", "16M")
    parameters = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
    content = (tmp_path / "vhdx").read_bytes()
    # The entry of the metadata table: id, offset and length; then block size and flags.
    table = content.index(b"metadata")
    entry = content.index(parameters, table)
    flags = table + int.from_bytes(content[entry + 16 : entry + 20], "little") + 4
    _changed(tmp_path / "vhdx", flags, b"\2\0\0\0")
    with pytest.raises(InvalidArgument, match="a parent disk"):
        look(tmp_path / "vhdx")


@pytest.mark.parametrize(("kind", "length"), [("vmdk", 50), ("vmdk", 9000), ("vhdx", 70_000)])
def test_a_disk_of_another_hypervisor_that_was_cut_off_is_refused(
    tmp_path: Path, kind: str, length: int
) -> None:
    qemu_img("create", "-f", kind, tmp_path / "disk", "16M")
    os.truncate(tmp_path / "disk", length)
    with pytest.raises(InvalidArgument, match="image busybox: .*(damaged|ends within)"):
        look(tmp_path / "disk")


def test_a_fixed_vhd_is_told_by_its_end(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", size=1 << 20)
    options = ["-o", "subformat=fixed,force_size=on"]
    qemu_img("convert", "-f", "raw", "-O", "vpc", *options, raw, tmp_path / "disk")
    with pytest.raises(InvalidArgument, match="VHD"):
        look(tmp_path / "disk")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "a web page"),
        (b'<?xml version="1.0"?><Error/>', "an XML document"),
        (b'{"errors": []}', "a JSON document"),
        (b"#!/bin/sh\n", "a script"),
        (gzip.compress(raw_disk()), "gzip"),
        (lzma.compress(raw_disk()), "xz"),
        (b"\x7fELF" + bytes(60), "an ELF program"),
        (b"LUKS\xba\xbe" + bytes(506), "LUKS"),
        (b"PK\x03\x04" + bytes(508), "a zip archive"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive.* belongs into a registry"),
        (bytes(0x8001) + b"CD001" + bytes(506), "a CD image"),
        (b"words\n" * 1024, "neither qcow2 nor a raw disk"),
        (bytes(4096), "neither qcow2 nor a raw disk"),
        (raw_disk()[:-1], "not a whole number"),
        (b"QFI\xfb", "ends within"),
        (b"QFI\xfb\0\0\0\x09" + bytes(100), "version 9"),
    ],
)
def test_what_is_not_a_disk_is_named_and_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=f"image busybox: .*{what}"):
        look(path)


def test_the_tests_own_kernel_is_no_disk(tmp_path: Path) -> None:
    kernel = bytearray(raw_disk())
    kernel[0x202:0x206] = b"HdrS"
    path = tmp_path / "disk"
    path.write_bytes(kernel)
    with pytest.raises(InvalidArgument, match="a Linux kernel"):
        look(path)


def test_a_hybrid_cd_starts_from_a_disk_and_is_taken(tmp_path: Path) -> None:
    content = bytearray(raw_disk())
    content[0x8001:0x8006] = b"CD001"
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert look(path).format == "raw"


def test_the_header_is_read_as_qemu_img_reads_it(tmp_path: Path) -> None:
    path = write_qcow2(tmp_path / "disk", "3M")
    info = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True
        ).stdout
    )
    header = parse_header("x", path.read_bytes()[:104])
    assert header.virtual_size == info["virtual-size"]


@pytest.mark.parametrize(
    ("bit", "what"), [(1, "corrupt"), (2, "external file"), (5, "unknown"), (63, "unknown")]
)
def test_features_that_are_not_allowed_are_seen_before_qemu_img_is(
    tmp_path: Path, bit: int, what: str
) -> None:
    path = write_qcow2(tmp_path / "disk")
    with path.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 1 << bit))
    with pytest.raises(InvalidArgument, match=what):
        look(path)


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        pytest.param(20, struct.pack(">I", 63), id="clusters of 2^63 bytes"),
        pytest.param(24, struct.pack(">Q", 1 << 62), id="a disk of 4 EiB"),
        pytest.param(36, struct.pack(">I", 0x7FFFFFFF), id="an L1 table of 16 GiB"),
        pytest.param(36, struct.pack(">I", 4 << 20), id="an L1 table of 32 MiB"),
        pytest.param(48, struct.pack(">Q", 1 << 60), id="a refcount table far outside"),
        pytest.param(56, struct.pack(">I", 0x7FFFFFFF), id="a refcount table of 128 TiB"),
        pytest.param(56, struct.pack(">I", 128), id="a refcount table of 8 MiB"),
    ],
)
def test_a_qcow2_with_huge_tables_is_refused(tmp_path: Path, offset: int, field: bytes) -> None:
    path = _changed(write_qcow2(tmp_path / "disk"), offset, field)
    with pytest.raises(InvalidArgument, match="image busybox: .*it is damaged"):
        look(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(4, 111), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 200_000),
)
def test_a_mangled_qcow2_is_taken_or_refused_and_nothing_else(
    tmp_path: Path, flips: list[tuple[int, int]], length: int
) -> None:
    pristine = tmp_path / "pristine"
    if not pristine.exists():
        write_qcow2(pristine)
    content = bytearray(pristine.read_bytes()[: max(length, 4)])
    for position, value in flips:
        if position < len(content):
            content[position] = value
    path = tmp_path / "disk"
    path.write_bytes(content)
    problem = ""
    try:
        look(path)
    except InvalidArgument as error:
        problem = str(error)
    assert str(tmp_path) not in problem


def test_internal_snapshots_are_refused(tmp_path: Path) -> None:
    path = write_qcow2(tmp_path / "disk")
    qemu_img("snapshot", "-c", "first", path)
    with pytest.raises(InvalidArgument, match="holds 1 internal snapshots.*qemu-img convert"):
        look(path)
    qemu_img("snapshot", "-d", "first", path)
    assert look(path).format == "qcow2"


def test_qemu_img_is_nobody_without_a_network_and_given_the_file_alone(
    tmp_path: Path, open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed to everybody else, and so is the directory that it is in."""
    path = write_qcow2(tmp_path / "disk")
    path.chmod(0o600)
    said = open_path / "said"
    status = "grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs)' /proc/self/status"
    network = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; env"
    line = f"({status}; {network}; cat {path}) > {said} 2>&1"
    monkeypatch.setenv("SECRET", "hunter2")
    program_that(line, open_path / "bin", monkeypatch)
    plugin = configured(Plugin(), tmp_path)
    assert plugin.virtlet_recognize_image("busybox", path).format == "qcow2"
    text = said.read_text()
    told = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", text, re.M))
    assert told["Uid"].split() == ["65534"] * 4
    assert told["Gid"].split() == [str(os.getgid())] * 4
    assert (told["Groups"], told["NoNewPrivs"]) == ("", "1")
    assert int(told["CapEff"], 16) == int(told["CapBnd"], 16) == 0
    assert os.readlink("/proc/self/ns/net") not in text
    assert os.readlink("/proc/self/ns/ipc") not in text
    assert "Permission denied" in text
    assert "hunter2" not in text
    assert path.stat().st_mode & 0o007 == 0


def test_qemu_img_runs_within_limits(
    tmp_path: Path, open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_qcow2(tmp_path / "disk")
    said = open_path / "said"
    program_that(
        f"echo $1 $(ulimit -v) $(ulimit -t) $MALLOC_ARENA_MAX >> {said}",
        open_path / "bin",
        monkeypatch,
    )
    look(path)
    assert said.read_text() == "info 1048576 30 1\ncheck 1048576 30 1\n"


@pytest.mark.parametrize("command", ["info", "check"])
@pytest.mark.parametrize("end", ["kill -ABRT $$", "kill -XCPU $$", "exit 134"])
def test_a_qemu_img_that_breaks_off_is_asked_once_more_and_tells_nothing_of_the_image(
    tmp_path: Path, open_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, end: str
) -> None:
    path = write_qcow2(tmp_path / "disk")
    once, programs = open_path / "once", open_path / "bin"
    program_that(f"test $1 != {command} || ! mkdir {once} || {end}", programs, monkeypatch)
    assert look(path).format == "qcow2"
    assert once.exists()
    program_that(f"test $1 != {command} || {end}", programs, monkeypatch)
    with pytest.raises(Unavailable, match="image busybox: .*qemu-img ended with status"):
        look(path)


def test_a_qemu_img_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raw(tmp_path / "disk")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FailedPrecondition,
        match="qemu-img is not installed on this node: install the package qemu-utils",
    ):
        look(path)
