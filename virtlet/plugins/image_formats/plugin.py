"""Recognises disk images by their content alone: qcow2 and raw, if they are safe to start from.

Content that is not a disk image is recognised too, so that the message can say what it is.
qemu-img follows what a qcow2 header points at, so that what must not be followed is refused before
it runs. Source: docs/interop/qcow2.txt of QEMU.
"""

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from attrs import evolve

from virtlet import hookimpl
from virtlet.errors import DeadlineExceeded, InvalidArgument, Unavailable
from virtlet.host.commands import CommandError, CommandLimits, run
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.host.qcow2 import parse_header
from virtlet.model.image import Conversion, RecognizedImage
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.plugins.image_formats import foreign

_CONVERT = "convert it with qemu-img convert -O qcow2"
_UNPACK = "unpack it before offering it"
_TAR = (
    "offer the disk that is in it; the archive of a container's image belongs into a registry, "
    "with the disk in /disk"
)

_AT_START: tuple[tuple[bytes, str, str], ...] = (
    (b"LUKS\xba\xbe", "an encrypted LUKS volume", "decrypt it"),
    (b"COWD", "a VMDK image of an old kind", _CONVERT),
    (b"# Disk DescriptorFile", "a VMDK description of other files", _CONVERT),
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
    (0x101, b"ustar", "a tar archive", _TAR),
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

_QCOW2 = b"QFI\xfb"

_SECTOR = 512
_BOUNDS = CommandLimits(cpu_seconds=30, memory=1 << 30)
_TIMEOUT = 60.0
_VERDICTS = range(4)
"""Exit statuses of qemu-img, see its manual: 1 it cannot read it, 2 corrupt, 3 leaks."""


def identify(file: BinaryIO, size: int) -> tuple[str, str] | None:
    """Say what a file is, as `(what, remedy)`; None if it is unknown."""
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
        # A hybrid ISO has a boot sector too and starts from a disk: it is accepted.
        return "a CD image that does not start from a disk", "give a disk image or a hybrid ISO"
    return None


def recognise(path: Path, name: str, gid: int = NOBODY) -> RecognizedImage:
    """Say what a disk image is, and refuse what is not safe to start a VM from.

    Args:
        path: the file, absolute.
        name: the image's name, for messages.
        gid: the group that may read images; qemu-img runs in it.

    Raises:
        InvalidArgument: it is not a qcow2 or raw disk, or has a feature that is not allowed.
        FailedPrecondition: qemu-img is not installed.
        Unavailable: qemu-img came to no verdict; a retry may.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(foreign.HEAD)
        if foreign.knows(head):
            _let_read(file.fileno(), gid)
            return _foreign_disk(file.fileno(), name, head, gid)
        if head.startswith(_QCOW2):
            header = parse_header(name, head)
            header.check(name)
            found = RecognizedImage(format="qcow2", virtual_size=header.virtual_size)
        else:
            _check_raw(file, name, size, head)
            found = RecognizedImage(format="raw", virtual_size=size)
        if found.virtual_size == 0:
            raise InvalidArgument(f"image {name}: its disk has no size")
        _let_read(file.fileno(), gid)
        _check_with_qemu(file.fileno(), name, found, gid)
    return found


def first_look(name: str, head: bytes, size: int | None) -> RecognizedImage:
    """Say what a disk image is by its beginning, and refuse what that forbids already.

    Args:
        name: the image's name, for messages.
        head: its first bytes, 64 KiB at least where it has so many.
        size: bytes in all; None where that is not known.

    Returns:
        Its virtual size is 0 where the beginning does not tell.

    Raises:
        InvalidArgument: it is not a disk, or has a feature that is not allowed.
    """
    if foreign.knows(head):
        return foreign.look(name, head[: foreign.HEAD])
    if head.startswith(_QCOW2):
        header = parse_header(name, head)
        header.check(name)
        return RecognizedImage(format="qcow2", virtual_size=header.virtual_size)
    _check_raw(BytesIO(head), name, size or 0, head)
    return RecognizedImage(format="raw", virtual_size=size or 0)


def _foreign_disk(file: int, name: str, head: bytes, gid: int) -> RecognizedImage:
    found = foreign.look(name, head)
    why = f"it is damaged, a part of an image, or stands on a parent disk; {_CONVERT}"
    info = _ask(file, name, "info", found.format, gid, why)
    foreign.check(name, found.format, info)
    return evolve(found, virtual_size=int(info["virtual-size"]))


def _let_read(descriptor: int, gid: int) -> None:
    """Let a group read a file, as it will when it is in the store."""
    status = os.fstat(descriptor)
    ours = status.st_gid == gid and status.st_mode & 0o040
    if not ours and not status.st_mode & 0o004 and os.geteuid() == 0:
        os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, status.st_mode & 0o777 | 0o040)


def _check_raw(file: BinaryIO, name: str, size: int, head: bytes) -> None:
    found = identify(file, size)
    if found is not None:
        what, remedy = found
        raise InvalidArgument(f"image {name}: it is {what}, not a qcow2 or raw disk; {remedy}")
    # Firmware starts a disk by these marks only, and a file without them is most likely not one:
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
            f"image {name}: its {size} bytes are not a whole number of {_SECTOR}-byte sectors; "
            "was it cut off?"
        )


def _check_with_qemu(file: int, name: str, found: RecognizedImage, gid: int) -> None:
    info = _ask(file, name, "info", found.format, gid)
    details = info.get("format-specific", {}).get("data", {})
    forbidden = {"backing-filename", "full-backing-filename", "encrypted"} & info.keys()
    if forbidden or {"data-file", "encrypt"} & details.keys() or details.get("corrupt"):
        raise InvalidArgument(f"image {name}: it depends on another file or key, or is corrupt")
    if info.get("format") != found.format or info.get("virtual-size") != found.virtual_size:
        raise InvalidArgument(f"image {name}: its header and qemu-img disagree on what it is")
    if found.format == "qcow2":
        report = _ask(file, name, "check", found.format, gid)
        if report.get("corruptions") or report.get("check-errors"):
            raise InvalidArgument(
                f"image {name}: it is damaged or cut off (qemu-img check finds errors)"
            )


def _ask(
    file: int, name: str, command: str, format: str, gid: int, why: str = "it is damaged"
) -> dict[str, Any]:
    path = f"/proc/self/fd/{file}"
    text = _run(["qemu-img", command, "-U", "--output=json", "-f", format, path], name, file, gid)
    try:
        answer = json.loads(text)
    except ValueError:
        raise InvalidArgument(f"image {name}: qemu-img cannot read it; {why}") from None
    if not isinstance(answer, dict):
        raise InvalidArgument(f"image {name}: qemu-img cannot make sense of it")
    return answer


def _run(argv: list[str], name: str, file: int, gid: int) -> bytes:
    """Run qemu-img, and again if it ends without a verdict, as on a node without memory."""
    tries = 2
    while True:
        tries -= 1
        try:
            # Its messages quote our paths and text of the image, and can be endless.
            return run(
                argv,
                timeout=_TIMEOUT,
                limits=_BOUNDS,
                confinement=Confinement(uid=NOBODY, gid=gid, network=False),
                pass_fds=(file,),
                statuses=_VERDICTS,
                quiet=True,
                package="qemu-utils",
            )
        except (CommandError, DeadlineExceeded) as error:
            if not tries:
                raise Unavailable(f"image {name}: it cannot be checked now: {error}") from None


class Plugin:
    """Accepts disks that a VM can start from, and says what any other file is."""

    VIRTLET_HOOK_API = 1

    _gid = NOBODY

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember which group may read images."""
        self._gid = node.emulator_gid

    @hookimpl
    def virtlet_unpack_image(self, name: str, head: bytes) -> Conversion | None:
        """Unpack gzip, xz and zstd."""
        return foreign.unpacking(head)

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage:
        """Never None: as the last one asked, it says why a file is not a disk."""
        return recognise(file, name, self._gid)
