"""Content that is no disk image for us, told apart so that the message can say what it is."""

import os
from typing import BinaryIO

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
