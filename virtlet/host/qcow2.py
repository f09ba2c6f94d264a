"""Headers of qcow2 files: what they would have QEMU open, and what it cannot.

Source: docs/interop/qcow2.txt of QEMU.
"""

import struct

from attrs import frozen

from virtlet.errors import InvalidArgument

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_INCOMPATIBLE = struct.Struct(">Q")

_CORRUPT = 1 << 1
_EXTERNAL_DATA = 1 << 2
_UNDERSTOOD = (1 << 5) - 1
"""Dirty, corrupt, external data file, compression type, extended L2 entries."""

HEADER_SIZE = 104
"""Bytes that `parse_header` needs."""

_CONVERT = "convert it with qemu-img convert -O qcow2"


@frozen
class Qcow2Header:
    """What decides whether a qcow2 image is safe."""

    version: int
    virtual_size: int
    backing_file: bool
    encrypted: bool
    snapshots: int
    incompatible: int

    def check(self, name: str) -> None:
        """Refuse what would make QEMU read another file, or fail later.

        Raises:
            InvalidArgument: the image has a feature that is not allowed; it names the remedy.
        """
        if self.backing_file:
            raise InvalidArgument(
                f"image {name}: it stands on a backing file, which is not allowed; "
                "flatten it with qemu-img convert -O qcow2"
            )
        if self.incompatible & _EXTERNAL_DATA:
            raise InvalidArgument(
                f"image {name}: its data is in an external file, which is not allowed; "
                "make it one file with qemu-img convert -O qcow2"
            )
        if self.encrypted:
            raise InvalidArgument(f"image {name}: it is encrypted, and there is no key for it")
        if self.snapshots:
            raise InvalidArgument(
                f"image {name}: it holds {self.snapshots} internal snapshots, which are not "
                f"allowed; {_CONVERT}"
            )
        if self.incompatible & _CORRUPT:
            raise InvalidArgument(
                f"image {name}: it is marked corrupt; repair it with qemu-img check -r all"
            )
        if self.incompatible & ~_UNDERSTOOD:
            raise InvalidArgument(f"image {name}: it has unknown qcow2 features")


def parse_header(name: str, head: bytes) -> Qcow2Header:
    """Read the header of a qcow2 file.

    Args:
        name: the image's name, for messages.
        head: the file's first bytes, from the magic on; 104 are enough.

    Raises:
        InvalidArgument: it is too short, or of an unknown version.
    """
    if len(head) < _V2.size + _INCOMPATIBLE.size:
        raise InvalidArgument(f"image {name}: it ends within its qcow2 header")
    fields = _V2.unpack_from(head)
    version, backing_offset, backing_size = fields[1:4]
    virtual_size, crypt_method = fields[5:7]
    if version not in (2, 3):
        raise InvalidArgument(
            f"image {name}: qcow version {version} is not supported; "
            "convert it with qemu-img convert -O qcow2"
        )
    incompatible = _INCOMPATIBLE.unpack_from(head, _V2.size)[0] if version == 3 else 0
    return Qcow2Header(
        version=version,
        virtual_size=virtual_size,
        backing_file=bool(backing_offset or backing_size),
        encrypted=crypt_method != 0,
        snapshots=fields[11],
        incompatible=incompatible,
    )
