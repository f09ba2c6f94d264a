"""What is packed, or a disk of another hypervisor, and the programs that make a disk of it.

Sources: block/vmdk.c of QEMU for the files that it opens besides the one that it is given, and
VMware's Virtual Disk Format 5.0 for the header.
"""

import struct
from collections.abc import Mapping
from typing import Any

from virtlet.errors import InvalidArgument
from virtlet.model.image import Conversion, RecognizedImage

_UNPACK = ("zstd", "--decompress", "--stdout", "--quiet", "--sparse", "--no-asyncio")
"""Debian's zstd unpacks gzip and xz as well. It leaves holes where there are zeros, and refuses
content that wants more memory than 128 MiB for its window."""
_PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_FOREIGN = {b"KDMV": "vmdk", b"vhdxfile": "vhdx"}
_VMDK_HEADER = struct.Struct("<4sIIQQQQ")
_DESCRIPTION = slice(512, 21 * 512)
"""What QEMU reads of a VMDK image's description, wherever its header says that it is."""
_PARENT = b"parentFileNameHint"
_KINDS = ("monolithicSparse", "streamOptimized")
_NO_PARENT = 0xFFFFFFFF
HEAD = 21 * 512
"""Bytes of a file that decide what it is."""


def unpacking(head: bytes) -> Conversion | None:
    """What unpacks content that begins so."""
    for magic, format in _PACKED.items():
        if head.startswith(magic):
            return Conversion(format=format, argv=_UNPACK, package="zstd")
    return None


def knows(head: bytes) -> bool:
    """Whether this is a disk of another hypervisor that is converted."""
    return _format(head) is not None


def _format(head: bytes) -> str | None:
    return next((format for magic, format in _FOREIGN.items() if head.startswith(magic)), None)


def look(name: str, head: bytes) -> RecognizedImage:
    """Say what converts such a disk, and refuse what leads qemu-img to other files.

    Raises:
        InvalidArgument: the image is not one whole file.
    """
    format = _format(head)
    assert format is not None
    if format == "vmdk":
        _check_vmdk(name, head)
    ends = ("/proc/self/fd/0", "/proc/self/fd/1")
    argv = ("qemu-img", "convert", "-f", format, "-O", "qcow2", *ends)
    conversion = Conversion(format=format, argv=argv, package="qemu-utils")
    return RecognizedImage(format=format, conversion=conversion)


def _check_vmdk(name: str, head: bytes) -> None:
    if len(head) < _VMDK_HEADER.size:
        raise InvalidArgument(f"image {name}: it ends within its VMDK header")
    capacity, _, description, _ = _VMDK_HEADER.unpack_from(head)[3:]
    if not capacity or not description:
        raise InvalidArgument(
            f"image {name}: it is a part of a VMDK image that consists of several files; make it "
            "one file with qemu-img convert -O qcow2"
        )
    if _PARENT in head[_DESCRIPTION]:
        raise InvalidArgument(
            f"image {name}: it stands on a parent disk, which is not allowed; flatten it with "
            "qemu-img convert -O qcow2"
        )


def check(name: str, format: str, info: Mapping[str, Any]) -> None:
    """Look at what qemu-img info says of such a disk.

    Raises:
        InvalidArgument: it is another kind of disk, is not whole or has no size.
    """
    details = info.get("format-specific", {}).get("data", {})
    whole = info.get("format") == format and not {"backing-filename", "encrypted"} & info.keys()
    if format == "vmdk":
        kind, extents = details.get("create-type"), details.get("extents", ())
        parent = details.get("parent-cid", _NO_PARENT)
        whole = whole and kind in _KINDS and len(extents) == 1 and parent == _NO_PARENT
    if not whole:
        raise InvalidArgument(f"image {name}: it is no {format} image of one whole file")
    if not info.get("virtual-size"):
        raise InvalidArgument(f"image {name}: its disk has no size")
