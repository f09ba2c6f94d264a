"""Telling what disk image a file is, by its content alone, before anybody may use it.

Content that is no disk image for us is told apart, so that the message can say what it is.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from virtlet.errors import DeadlineExceeded, InvalidArgument, Unavailable
from virtlet.host.commands import CommandError, CommandLimits, run
from virtlet.model.image import RecognizedImage
from virtlet.plugins.image_formats import qcow2

_CONVERT = "convert it with qemu-img convert -O qcow2"
_UNPACK = "unpack it before offering it"

_AT_START: tuple[tuple[bytes, str, str], ...] = (
    (b"LUKS\xba\xbe", "an encrypted LUKS volume", "decrypt it"),
    (b"KDMV", "a VMDK image", _CONVERT),
    (b"COWD", "a VMDK image", _CONVERT),
    (b"# Disk DescriptorFile", "a VMDK description", _CONVERT),
    (b"vhdxfile", "a VHDX image", _CONVERT),
    (b"conectix", "a VHD image", _CONVERT),  # codespell:ignore conectix
    (b"QED\0", "a QED image", _CONVERT),
    (b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (b"Bochs Virtual HD Image", "a Bochs image", _CONVERT),
    (b"\x1f\x8b", "gzip-compressed", _UNPACK),
    (b"\xfd7zXZ\0", "xz-compressed", _UNPACK),
    (b"BZh", "bzip2-compressed", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", _UNPACK),
    (b"\x04\x22\x4d\x18", "lz4-compressed", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"\x7fELF", "an ELF program", "give a disk image"),
)
_AT_OFFSET: tuple[tuple[int, bytes, str, str], ...] = (
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    (0x101, b"ustar", "a tar archive", _UNPACK),
    (0x202, b"HdrS", "a Linux kernel", "give a disk image"),
)
_ISO = (0x8001, b"CD001")
_VHD_FOOTER = b"conectix"  # codespell:ignore conectix
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"{", "a JSON document"),
    (b"#!", "a script"),
)
_HEAD = _ISO[0] + len(_ISO[1])
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_SECTOR = 512
_BOUNDS = CommandLimits(cpu_seconds=30, memory=1 << 30)
_TIMEOUT = 60.0
_VERDICTS = range(4)
"""Statuses of qemu-img's own, see its manual: 1 it cannot read it, 2 corrupt, 3 leaks."""


def identify(file: BinaryIO, size: int) -> tuple[str, str] | None:
    """Say what a file is, as `(what, remedy)`; None when it is nothing known."""
    file.seek(0)
    head = file.read(_HEAD)
    for magic, what, remedy in _AT_START:
        if head.startswith(magic):
            return what, remedy
    for offset, magic, what, remedy in _AT_OFFSET:
        if head[offset : offset + len(magic)] == magic:
            return what, remedy
    file.seek(max(0, size - 512), os.SEEK_SET)
    if file.read(len(_VHD_FOOTER)) == _VHD_FOOTER:
        return "a VHD image", _CONVERT
    start = head[:256].removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    for text, what in _TEXTS:
        if start.startswith(text):
            return what, "check that the address leads to the image itself"
    if head[510:512] != b"\x55\xaa" and head[_ISO[0] :] == _ISO[1]:
        # A hybrid ISO has a boot sector too and starts from a disk: that one is let through.
        return "a CD image that does not start from a disk", "give a disk image or a hybrid ISO"
    return None


def recognise(path: Path, name: str) -> RecognizedImage:
    """Say what a disk image is, and refuse what is not safe to start a VM from.

    Args:
        path: the file, absolute.
        name: the image's name, for messages.

    Raises:
        InvalidArgument: it is no qcow2 or raw disk, or has a feature that is not allowed.
        FailedPrecondition: qemu-img is not installed.
        Unavailable: qemu-img came to no verdict; another try may.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(2 * 4096 + len(b"EFI PART"))
        if head.startswith(qcow2.MAGIC):
            header = qcow2.parse_header(name, head)
            header.check(name)
            found = RecognizedImage(format="qcow2", virtual_size=header.virtual_size)
        else:
            _check_raw(file, name, size, head)
            found = RecognizedImage(format="raw", virtual_size=size)
    if found.virtual_size == 0:
        raise InvalidArgument(f"image {name}: its disk has no size")
    _check_with_qemu(path, name, found)
    return found


def _check_raw(file: BinaryIO, name: str, size: int, head: bytes) -> None:
    found = identify(file, size)
    if found is not None:
        what, remedy = found
        raise InvalidArgument(f"image {name}: it is {what}, not a qcow2 or raw disk; {remedy}")
    # Firmware starts a disk by these marks alone, and a file without them is most likely none:
    # the boot sector's signature (also of a FAT or protective MBR), or a GPT at 512 or 4096.
    bootable = (
        head[510:512] == b"\x55\xaa"
        or head[512:520] == b"EFI PART"
        or head[4096:4104] == b"EFI PART"
    )
    if not bootable:
        raise InvalidArgument(
            f"image {name}: it is neither qcow2 nor a raw disk with a boot sector or partition "
            "table; check that the address leads to a disk image"
        )
    if size % _SECTOR:
        raise InvalidArgument(
            f"image {name}: its {size} bytes are no whole number of {_SECTOR}-byte sectors; "
            "was it cut off?"
        )


def _check_with_qemu(path: Path, name: str, found: RecognizedImage) -> None:
    info = _ask(path, name, "info", found.format)
    details = info.get("format-specific", {}).get("data", {})
    forbidden = {"backing-filename", "full-backing-filename", "encrypted"} & info.keys()
    if forbidden or {"data-file", "encrypt"} & details.keys() or details.get("corrupt"):
        raise InvalidArgument(f"image {name}: it depends on another file or key, or is corrupt")
    if info.get("format") != found.format or info.get("virtual-size") != found.virtual_size:
        raise InvalidArgument(f"image {name}: its header and qemu-img disagree on what it is")
    if found.format == "qcow2":
        report = _ask(path, name, "check", found.format)
        if report.get("corruptions") or report.get("check-errors"):
            raise InvalidArgument(
                f"image {name}: it is damaged or cut off (qemu-img check finds errors)"
            )


def _ask(path: Path, name: str, command: str, format: str) -> dict[str, Any]:
    text = _run(["qemu-img", command, "-U", "--output=json", "-f", format, str(path)], name)
    try:
        answer = json.loads(text)
    except ValueError:
        raise InvalidArgument(f"image {name}: qemu-img cannot read it; it is damaged") from None
    if not isinstance(answer, dict):
        raise InvalidArgument(f"image {name}: qemu-img cannot make sense of it")
    return answer


def _run(argv: list[str], name: str) -> bytes:
    """Run qemu-img, once more where it ends otherwise than with a verdict, as on a full node."""
    tries = 2
    while True:
        tries -= 1
        try:
            # Its words quote paths of ours and texts of the image's, and can be endless.
            return run(
                argv,
                timeout=_TIMEOUT,
                limits=_BOUNDS,
                statuses=_VERDICTS,
                quiet=True,
                package="qemu-utils",
            )
        except (CommandError, DeadlineExceeded) as error:
            if not tries:
                raise Unavailable(f"image {name}: it cannot be checked now: {error}") from None
